"""The built-in verifiers: whether a completion is right, by exact text, as mathematics, or by running it as code.

Each is a function `(prompt, completion) -> Score`, named in `VERIFIERS`. The reward is the outcome, 1.0 or 0.0, with no
shaping. An answer that is right but not in the asked format is not solved; the breakdown tells the two apart:
`{"format": 0.0, "correct": 1.0}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from decimal import Decimal

from judges.answers import NUMBER, Extraction, extract, extract_code, extract_number, extract_text, marked_answer
from judges.code_tests import check_tests, code_verdict
from judges.code_worker import CodeWorker
from judges.math_worker import MathWorker
from rollouts.errors import DataError
from rollouts.types import Prompt, Score

Verifier = Callable[[Prompt, str], Score]
Verdict = tuple[bool, str]

_CORES = os.cpu_count() or 1
_code_worker, _math_worker = CodeWorker(processes=_CORES), MathWorker(processes=_CORES)  # started as they are needed


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
    """The answer is a program that passes the prompt's tests, see `judges.code_tests`."""
    try:
        check_tests(prompt.tests)
    except DataError as error:
        raise DataError(f"prompt {prompt.prompt_id}: {error}") from None
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_code(completion)
    return _score(found, lambda answer: code_verdict(_code_worker, answer, prompt.tests))


def asked_format(prompt: Prompt, completion: str) -> Score:
    """The answer is in the asked format, whatever it is: the verifier `format`."""
    if prompt.answer_format is None:
        raise DataError(f"prompt {prompt.prompt_id} has no 'format' to obey")
    return _score(extract(completion, prompt.answer_format), lambda _: (True, ""))


def auto(prompt: Prompt, completion: str) -> Score:
    """`code` if the prompt has tests, `math` if its answer is a number, else `exact`."""
    if prompt.tests:
        return code(prompt, completion)
    reference = _reference(prompt)
    numeric = as_number(marked_answer(reference) or reference) is not None
    return (math_equal if numeric else exact)(prompt, completion)


VERIFIERS: dict[str, Verifier] = {
    "exact": exact, "math": math_equal, "code": code, "format": asked_format, "auto": auto,
}  # fmt: skip


def _score(found: Extraction, judge: Callable[[str], Verdict]) -> Score:
    correct, reason = judge(found.answer) if found.answer else (False, "")
    solved = correct and found.obeyed
    breakdown = {"format": float(found.obeyed), "correct": float(correct)}
    return Score(float(solved), solved, found.reason or reason or ("" if correct else "wrong answer"), breakdown)


def _reference(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise DataError(f"prompt {prompt.prompt_id} has no 'answer' to compare with")
    return prompt.answer


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


# ------------------------------------------------------------------------------------------------------------- math

_DRESS = re.compile(r"\\boxed|\\text|\\mathrm|\\left|\\right|\\[$%!,;() \[\]]|[${}]")
_OPERATOR = re.compile(r"[+*/^!_\\×÷·]|-(?!\w)")
_SUM = re.compile(r"[+*=×÷·]|\d\s*[-−]\s*\d|\\times|\\cdot|\\div|\\pm")
_QUOTIENT = re.compile(r"\d\s*/\s*\d")


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
    if answer.split() == reference.split():
        return True, ""
    expected, given = as_number(reference), as_number(answer)
    if expected is not None and given is not None and ("%" in answer) == ("%" in reference):
        return given == expected, ""
    whole = expected is not None and expected == expected.to_integral_value()
    if expected is not None and (_SUM.search(answer) or (whole and _QUOTIENT.search(answer))):
        # math-verify would compute `40+45`: the question back is no answer.
        return False, "the answer is not one number"
    return _math_worker.equal(answer, reference), ""
