"""The built-in verifiers: whether a completion is right, by exact text, as mathematics, or by running it as code.

Each is a function `(prompt, completion) -> Score`, named in `VERIFIERS`. The reward is the outcome, 1.0 or 0.0, with no
shaping. An answer that is right but not in the asked format is not solved; the breakdown tells the two apart:
`{"format": 0.0, "correct": 1.0}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from judges.answers import NUMBER, Extraction, extract, extract_code, extract_number, extract_text, marked_answer
from judges.code_worker import CodeWorker
from judges.math_worker import MathWorker
from rollouts.errors import DataError
from rollouts.types import Prompt, Score

Verifier = Callable[[Prompt, str], Score]
Verdict = tuple[bool, str]

_code_worker = CodeWorker()
_math_worker = MathWorker()


def exact(prompt: Prompt, completion: str) -> Score:
    """The answer's text is the reference's, apart from white space and letter case."""
    reference = _reference(prompt)
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_text(completion)
    return _score(found, lambda answer: (_normal(answer) == _normal(reference), ""))


def math_equal(prompt: Prompt, completion: str) -> Score:
    """The answer is mathematically equal to the reference: the verifier `math`."""
    reference = _reference(prompt)
    reference = marked_answer(reference) or reference
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_number(completion)
    return _score(found, lambda answer: _math_verdict(answer, reference))


def code(prompt: Prompt, completion: str) -> Score:
    """The answer is a program that gives the right output for each of the prompt's tests."""
    tests = _tests(prompt)
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_code(completion)
    return _score(found, lambda answer: _code_verdict(answer, tests))


def auto(prompt: Prompt, completion: str) -> Score:
    """`code` if the prompt has tests, `math` if its answer is a number, else `exact`."""
    if prompt.tests:
        return code(prompt, completion)
    reference = _reference(prompt)
    numeric = as_number(marked_answer(reference) or reference) is not None
    return (math_equal if numeric else exact)(prompt, completion)


VERIFIERS: dict[str, Verifier] = {"exact": exact, "math": math_equal, "code": code, "auto": auto}


def _score(found: Extraction, judge: Callable[[str], Verdict]) -> Score:
    correct, reason = judge(found.answer) if found.answer else (False, "")
    solved = correct and found.obeyed
    breakdown = {"format": float(found.obeyed), "correct": float(correct)}
    return Score(float(solved), solved, found.reason or reason or ("" if correct else "wrong answer"), breakdown)


def _reference(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise DataError(f"prompt {prompt.prompt_id} has no 'answer' to compare with")
    return prompt.answer


def _tests(prompt: Prompt) -> list[tuple[Any, Any]]:
    if not prompt.tests:
        raise DataError(f"prompt {prompt.prompt_id} has no 'tests' to run code on")
    for index, test in enumerate(prompt.tests):
        for key in ("input", "output"):
            if key not in test:
                raise DataError(f"prompt {prompt.prompt_id}: tests[{index}] has no '{key}'")
    return [(test["input"], test["output"]) for test in prompt.tests]


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


# ------------------------------------------------------------------------------------------------------------- math

_DRESS = re.compile(r"\\boxed|\\text|\\mathrm|\\left|\\right|\\[$%!,;() \[\]]|[${}]")
_OPERATOR = re.compile(r"[+*/^!_\\×÷·]|-(?!\w)")
_SUM = re.compile(r"[+*=×÷·]|\d\s*[-−]\s*\d|\\times|\\cdot|\\div|\\pm")


def as_number(text: str) -> Decimal | None:
    """The one number that the text is, `1,234.50`, with a currency, a unit or words (`72 clips`); None for the rest."""
    if len(text) > 200:
        return None
    text = _DRESS.sub("", text.replace("{,}", ",").replace("−", "-"))
    numbers = NUMBER.findall(text)
    if len(numbers) != 1 or _OPERATOR.search(NUMBER.sub(" ", text)):
        return None
    return Decimal(numbers[0].replace(",", ""))


def _math_verdict(answer: str, reference: str) -> Verdict:
    expected, given = as_number(reference), as_number(answer)
    if expected is not None and given is not None:
        return given == expected, ""
    if expected is not None and (expected == expected.to_integral_value() or _SUM.search(answer)):
        # math-verify would compute `40+45` and pick one of `84 or 85`: the question back, or a guess, is no answer.
        return False, "the answer is not one number"
    return _math_worker.equal(answer, reference), ""


# ------------------------------------------------------------------------------------------------------------- code


def _code_verdict(program: str, tests: list[tuple[Any, Any]]) -> Verdict:
    results = _code_worker.run(program, [argument for argument, _ in tests])
    for index, (result, (_, expected)) in enumerate(zip(results, tests, strict=True), start=1):
        if result.error:
            return False, f"test {index} of {len(tests)}: {result.error}"
        if not same(result.output, expected):
            return False, f"test {index} of {len(tests)}: wrong output"
    return True, ""


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
