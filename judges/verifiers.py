"""The built-in verifiers: whether a completion is right, by exact text, as mathematics, or by running it as code.

Each is a function `(prompt, completion) -> Score`, named in `VERIFIERS`. The reward is the outcome, 1.0 or 0.0, with no
shaping. An answer that is right but not in the asked format is not solved; the breakdown tells the two apart:
`{"format": 0.0, "correct": 1.0}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

from judges.answers import (
    NUMBER,
    Extraction,
    extract,
    extract_choice,
    extract_code,
    extract_number,
    extract_text,
    marked_answer,
)
from judges.code_tests import check_tests, code_verdict
from judges.code_worker import CodeWorker
from judges.math_worker import MAX_CHARS, MathWorker
from rollouts.errors import DataError, JudgeError
from rollouts.types import Prompt, Score

Verifier = Callable[[Prompt, str], Score]
Verdict = tuple[bool, str]

_CORES = os.cpu_count() or 1
_code_worker, _math_worker = CodeWorker(processes=_CORES), MathWorker(processes=_CORES)  # started as they are needed


def limit_programs(cpu_seconds: float, wall_seconds: float, memory_mib: int) -> None:
    """What programs may use up that `code` runs in this process from now on; see `CodeWorker`."""
    _code_worker.cpu_seconds, _code_worker.wall_seconds = cpu_seconds, wall_seconds
    _code_worker.memory_bytes = memory_mib << 20


def exact(prompt: Prompt, completion: str) -> Score:
    """The answer's text is the reference's, apart from white space and letter case."""
    reference = _reference(prompt)
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_text(completion)
    return _score(prompt, found, lambda answer: (_normal(answer) == _normal(reference), ""))


def choice(prompt: Prompt, completion: str) -> Score:
    """The answer is the reference's letter, `B` or `(B) Paris`; see `judges.answers.extract_choice`.

    Raises:
        JudgeError: the reference is no choice.
    """
    wanted = extract_choice(_reference(prompt)).answer
    if wanted is None:
        raise JudgeError(f"prompt {prompt.prompt_id}: answer {prompt.answer!r:.80} names no choice, such as B or (B)")
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_text(completion)
    chosen = extract_choice(found.answer or "")
    reason = found.reason or chosen.reason
    return _score(prompt, replace(found, answer=chosen.answer, reason=reason), lambda answer: (answer == wanted, ""))


def math_equal(prompt: Prompt, completion: str) -> Score:
    """The answer is mathematically equal to the reference: the verifier `math`.

    Raises:
        JudgeError: the reference cannot be read as mathematics, or is too large to compare with anything.
    """
    reference = _reference(prompt)
    reference = marked_answer(reference) or reference
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_number(completion)
    return _score(prompt, found, lambda answer: _math_verdict(answer, reference))


def code(prompt: Prompt, completion: str) -> Score:
    """The answer is a program that passes the prompt's tests, see `judges.code_tests`.

    Raises:
        JudgeError: the tests cannot be run, or would never run.
    """
    try:
        check_tests(prompt.tests)
    except DataError as error:
        raise DataError(f"prompt {prompt.prompt_id}: {error}") from None
    found = extract(completion, prompt.answer_format) if prompt.answer_format else extract_code(completion)
    return _score(prompt, found, lambda answer: code_verdict(_code_worker, answer, prompt.tests))


def asked_format(prompt: Prompt, completion: str) -> Score:
    """The answer is in the asked format, whatever it is: the verifier `format`."""
    if prompt.answer_format is None:
        raise DataError(f"prompt {prompt.prompt_id} has no 'format' to obey")
    return _score(prompt, extract(completion, prompt.answer_format), lambda _: (True, ""))


def auto(prompt: Prompt, completion: str) -> Score:
    """`code` if the prompt has tests, `math` if its answer is a number, a fraction or LaTeX, else `exact`."""
    if prompt.tests:
        return code(prompt, completion)
    reference = _reference(prompt)
    reference = marked_answer(reference) or reference
    formula = _LATEX.search(reference) or _FRACTION.fullmatch(reference[:_SHORT])
    return (math_equal if formula or as_number(reference) is not None else exact)(prompt, completion)


VERIFIERS: dict[str, Verifier] = {
    "exact": exact, "choice": choice, "math": math_equal, "code": code, "format": asked_format, "auto": auto,
}  # fmt: skip

NEEDS = {"math": "answer", "exact": "answer", "choice": "answer", "code": "tests", "format": "format"}
"""The field that a row must have, by verifier."""


def lacking(name: str, prompt: Prompt) -> str:
    """What a prompt lacks that a verifier needs; empty if nothing, or if the reward is the user's own."""
    has = {"answer": prompt.answer is not None, "tests": bool(prompt.tests), "format": prompt.answer_format is not None}
    if name == "auto":
        return "" if has["answer"] or has["tests"] else "neither 'answer' nor 'tests', of which 'auto' needs one"
    need = NEEDS.get(name)
    return "" if need is None or has[need] else f"no field '{need}', which '{name}' needs"


def _score(prompt: Prompt, found: Extraction, judge: Callable[[str], Verdict]) -> Score:
    try:
        correct, reason = judge(found.answer) if found.answer else (False, "")
    except DataError as error:  # one bad row among many: its groups are rejected and counted, and the run goes on
        raise JudgeError(f"prompt {prompt.prompt_id}: {error}") from None
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

_SHORT = 200
"""A text of more characters is no number, and no words."""

_LATEX = re.compile(
    r"\\(?:[dtc]?frac|sqrt|pi|times|cdot|infty|cup|cap|begin|left|pm|le|ge|text|mathbb)(?![a-zA-Z])|\^|√|π"
)
_LOOK = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|[mf]box|boxed|left|right|displaystyle|q?quad)(?![a-zA-Z])"
    r"|\\[,;:()\[\] ]|~|(?<=[^\W\d_])\(e?s\)"
)
_BOLD = re.compile(r"\s*(\*\*?|__?|`)([^*_`]+)\1\s*\.?\s*")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\[,;: ]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])")
_SCIENTIFIC = re.compile(
    r"(?<![\w.,])(?:(\d+(?:\.\d+)?)[eE]|([1-9](?:\.\d+)?)\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^)"
    r"\s*([-+]?\d{1,2})(?![\w^]|\.\d)"
)
_NAME = re.compile(r"^[\s$]*([A-Za-z])\s*=")
_BASE = re.compile(r"(?<=\d)_\{?(\d+)\}?(?=[\s$.]*$)")

_WORD = r"(?:[^\W\d_]{2,}|[^\W\d_A-Za-z])"
_UNIT = (
    "(?:[ckdmn]m|[km]g|m[lL]|ft|feet|in|inch(?:es)?|met(?:er|re)s?|units?|lbs?|oz|yd|mi|hrs?|mins?|secs?|mph|[ap]m"
    "|st|nd|rd|th|[mgsL])"
)
_LETTER_UNIT = "[mgshlLNJVWCFK]"
"""Apart from its number, `5 h`. Any other letter is a variable, and so is `h` in `5h`."""
_POWER = re.compile(rf"(?<![^\W\d_])({_UNIT}|{_LETTER_UNIT})\s*(?:\^\s*-?[1-3](?!\d)|[²³])")
_MEASURED = re.compile(rf"0(?:\s*{_UNIT}|\s+{_LETTER_UNIT}|\s*°\s*[CF])(?:/(?:{_UNIT}|{_LETTER_UNIT}))?(?![^\W\d_])")
_SYMBOLS = "+*^!_<>|\\\\×÷·±²³¹¼-¾⁰-ₜ⅐-↋∀-⋿\u0370-\u03bb\u03bd-\u03ff\u2100-\u214f\U0001d400-\U0001d7ff"
_OPERATIONS = (
    r"(?<![^\W\d_])(?i:(?:arc)?(?:sin|cos|tan|cot|csc)h?|sqrt|cbrt|root|log|ln|lg|exp|abs|mod|floor|ceil|pi|[xyz]{2,}"
    r"|minus|negative|plus|times|squared|cubed|factorial|half|not|(?:more|less|greater|fewer|larger|smaller)\s+than)"
    r"(?![^\W\d_])"
)
_FORMULA = re.compile(
    rf"""
    [{_SYMBOLS}]                                        # an operator, a relation, `5²`, `|-5|`, `3π`, LaTeX
    | {_OPERATIONS}                                     # `log 5`, `minus 5`
    | [-/](?!{_WORD})                                   # no hyphen as in `72-hour`, nor `$5/hour`
    | =.*= | 0.*=                                       # more than a name in front, `cost = 5`
    | [^\W\d_][(\[].*0 | 0[(\[]                         # `f(5)`, `5(x)`
    | 0[A-Za-z] | (?<![^\W\d_])[A-Za-z]0                # `3x`; a unit is gone by now
    | (?<![^\W\d_])(?![aAI]\s)[A-Za-z](?![^\W\d_])(?!\s*=|\s+{_WORD})  # a variable elsewhere
    """,
    re.VERBOSE | re.DOTALL,
)
_LABEL = re.compile(r"^\s*\\?[A-Za-z][A-Za-z0-9_]*\s*(?:\([^()=]*\))?\s*=")  # `x =`, `x_1 =`, `f(3) =`
_FRACTION = re.compile(
    r"[\s$]*-?[\d,.\s]*(?:\\[dtc]?frac\s*(?:\{\s*-?[\d,.]+\s*\}|\d)\s*(?:\{\s*[\d,.]+\s*\}|\d)|\d\s*/\s*\d[\d,.]*|[¼-¾⅐-⅞])"
    r"[\s$.]*"
)
_UNWORKED = re.compile(
    r"[+*=×÷·±]|\\(?:times|cdot|div|pm)|[\d)]\s*-\s*[-(\d\\]|\)\s*\(|\d\s*\(\s*-?\d|frac.*\\[dtc]?frac", re.DOTALL
)
_WORDS = re.compile(r"\D*[^\W\d_]{4}\D*")  # fewer letters may be a product, `abc`
_NO_TEXT = re.compile(rf"[{_SYMBOLS}=/]|{_OPERATIONS}")


def as_number(text: str) -> Decimal | None:
    r"""The one number that the text is; None for the rest, such as `3x`, `x>5`, `\sqrt{25}`, `40+5`.

    It may have thousands separators, a currency, a unit or words (`72 clips`, `5 m`, `9\text{ cm}^2`), a name (`x = 5`)
    or a base (`101_2`, which is not looked at), and may be in scientific notation (`1.5e3`, `1.5\times 10^3`).
    """
    if len(text) > _SHORT:
        return None
    text = _LABEL.sub("", _SCIENTIFIC.sub(_written_out, _undressed(text)))
    text = _BASE.sub("", _POWER.sub(r"\1", text))
    numbers = NUMBER.findall(text)
    if len(numbers) != 1 or _FORMULA.search(_MEASURED.sub("0 ", NUMBER.sub("0", text))):
        return None
    return Decimal(numbers[0].replace(",", ""))


def _undressed(text: str) -> str:
    """The text without what LaTeX and Markdown say about its looks, and with plain signs."""
    bold = _BOLD.fullmatch(text)
    text = re.sub("[−–]", "-", bold.group(2) if bold else text).replace(r"\!", "")
    text = _DEGREES.sub("°", _THOUSANDS.sub(lambda mark: "," if mark[0] == "{,}" else "", text))
    text = re.sub(r"\\approx(?![a-zA-Z])|≈", "=", text.replace(r"\%", "%").replace(r"\$", ""))
    text = re.sub(r"[${}]", "", _LOOK.sub(" ", text))
    return re.sub(r"(^|=)\s*-\s+(?=\d)", r"\1-", text)


def _written_out(scientific: re.Match[str]) -> str:
    return format(Decimal(f"{scientific[1] or scientific[2]}e{scientific[3]}"), "f")


def _math_verdict(answer: str, reference: str) -> Verdict:
    if answer.split() == reference.split():
        return True, ""
    expected, given = as_number(reference), as_number(answer)
    if expected is not None and given is not None and _percent(answer) == _percent(reference):
        return given == expected and not _contradict(answer, reference), ""
    if given is None and _given_back(answer, reference, expected):
        return False, "the answer is not one number"
    said, text = _as_text(answer), _as_text(reference)
    if said and text and (said == text or _WORDS.fullmatch(text)):
        return said == text, ""  # math-verify would multiply the letters: `evil` is `live`
    return _math_worker.compare(answer, reference, words=bool(text))


def _given_back(answer: str, reference: str, expected: Decimal | None) -> bool:
    """Whether the answer leaves to us what a number was asked for: math-verify would compute `50-(5)`, and `90/2`.

    The question back is no answer. Where the reference is no whole number, a quotient may be the answer.
    """
    if expected is not None and expected == expected.to_integral_value():
        return True
    if expected is None and not _FRACTION.fullmatch(reference[:_SHORT]):
        return False
    return _UNWORKED.search(_LABEL.sub("", _undressed(answer[:MAX_CHARS]))) is not None


def _contradict(answer: str, reference: str) -> bool:
    """Whether they name two unknowns, `x = 5` and `y = 5`, or two bases."""
    pairs = [(mark.search(answer), mark.search(reference)) for mark in (_NAME, _BASE)]
    return any(said and asked and said[1] != asked[1] for said, asked in pairs)


def _percent(text: str) -> bool:
    return "%" in text or "percent" in text.lower()


def _as_text(text: str) -> str:
    """What is written, in small letters, if it is words and no formula; else nothing."""
    plain = _normal(_undressed(text[:_SHORT])).removesuffix(".")
    return plain if any(map(str.isalpha, plain)) and len(text) <= _SHORT and not _NO_TEXT.search(plain) else ""
