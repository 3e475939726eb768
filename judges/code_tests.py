"""What it takes for a program to pass its tests, of which there are three kinds.

| a test | passes if |
|---|---|
| `{"input": …, "output": …}` | the function, called with the input, returns the output |
| the same, both texts | the script, given the input on stdin, writes the output; a program that reads none is called |
| Python source | it runs after the program without an exception; also functions `test…` and cases of unittest in it |

The program never gets an expected output, nor the source of a test (`judges.sandbox`). Source of which tests would
never run, such as `check(candidate)` that nobody calls, is refused: every program would pass it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from judges.code_worker import CodeWorker
from rollouts.errors import DataError

Test = Mapping[str, Any] | str


def check_tests(tests: Sequence[Test]) -> None:
    """Raises DataError if they are none, or of no kind, or of several."""
    if not tests:
        raise DataError("no 'tests' to run code on")
    for index, test in enumerate(tests):
        if isinstance(test, str) != isinstance(tests[0], str):
            raise DataError(f"tests[{index}] is of another kind than tests[0]")
        if isinstance(test, str):
            if not test.strip():
                raise DataError(f"tests[{index}] is empty")
            continue
        for key in ("input", "output"):
            if key not in test:
                raise DataError(f"tests[{index}] has no '{key}'")


def code_verdict(worker: CodeWorker, program: str, tests: Sequence[Test]) -> tuple[bool, str]:
    """Whether the program passes, and why not.

    Raises:
        DataError: the tests cannot be run, whatever the program is.
        JudgeError: the worker fails.
        UserError: this machine cannot hold programs.
    """
    sources = [test for test in tests if isinstance(test, str)]
    if sources:
        reason = worker.test(program, sources[0] if len(sources) == 1 else sources)
        return not reason, reason
    pairs = [(test["input"], test["output"]) for test in tests if not isinstance(test, str)]
    inputs = [given for given, _ in pairs]
    texts = all(isinstance(each, str) for pair in pairs for each in pair)
    results = worker.run_script(program, inputs) if texts else worker.run(program, inputs)
    for index, (result, (_, expected)) in enumerate(zip(results, pairs, strict=True), start=1):
        if result.error:
            return False, f"test {index} of {len(pairs)}: {result.error}"
        if not same(result.output, expected) and not (texts and same_text(result.output, expected)):
            return False, f"test {index} of {len(pairs)}: wrong output"
    return True, ""


def same_text(output: object, expected: str) -> bool:
    """Equality of what is written: white space at the ends of lines, and empty lines at the end, do not count, and
    numbers with a point are compared to 9 digits.
    """
    if not isinstance(output, str):
        return False
    ours, theirs = _lines(output), _lines(expected)
    return ours == theirs or (len(ours) == len(theirs) and all(map(_same_line, ours, theirs)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_line(one: str, other: str) -> bool:
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(one: str, other: str) -> bool:
    return one == other or ("." in one + other and _close(one, other))


def same(output: object, expected: object) -> bool:
    """Equality of plain data: a bool is no number, floats are compared to 9 digits, a tuple is a list."""
    if isinstance(output, bool) or isinstance(expected, bool):
        return output is expected
    if isinstance(output, float) or isinstance(expected, float):
        numbers = isinstance(output, int | float) and isinstance(expected, int | float)
        return numbers and _close(output, expected)
    if isinstance(output, list | tuple) and isinstance(expected, list | tuple):
        return len(output) == len(expected) and all(map(same, output, expected))
    if isinstance(output, dict) and isinstance(expected, dict):
        keyed = {str(key): value for key, value in expected.items()}  # JSON has no other keys
        return output.keys() == keyed.keys() and all(same(output[key], keyed[key]) for key in keyed)
    return type(output) is type(expected) and output == expected


def _close(output: object, expected: object) -> bool:
    try:
        return math.isclose(float(str(output)), float(str(expected)), rel_tol=1e-9, abs_tol=1e-12)
    except (OverflowError, ValueError):
        return False
