"""Finds the answer in a completion, in the format that was asked for or, where none was asked, wherever it usually is.

An asked format is `(left, right)`: `("<ans>", "</ans>")`, `("{{", "}}")`, or without a right side `("Answer:", "")`,
`("=>", "")`. Working before the answer is always allowed, text after it never: a completion that goes on (a *run-on*)
has not obeyed.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

Format = tuple[str, str]

# A sign counts unless it follows a letter, digit or bracket: then it is an operator (`x+1`) or a hyphen.
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)")

_DIGIT = re.compile(r"\d")
_PROSE = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_DISPLAYED = re.compile(r"\$([^$\n]{1,500})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL)
_CHOSEN = re.compile(r"[\W_]*([A-Za-z])(?:[^\w\s'][\W_]*|[^\w\s']\W*\s.*|\s*)", re.DOTALL)
_LETTER = r"[\s(\[*_`\"]{0,9}([A-Z])(?![\w'])"
_ANNOUNCED = re.compile(
    r"(?i:answer|solution|(?:correct|right|best|choose|chose|pick|select)\s+(?:choice|option))"
    rf"(?i:\s+is|\s+would\s+be)?(?i:\s+(?:choice|option))?\s*[:=]?{_LETTER}"
    rf"|(?i:choice|option)\s*(?:(?i:is|would\s+be)(?!\w)|[:=]){_LETTER}"
)
_MENTIONED = re.compile(
    rf"(?i:choice|option){_LETTER}(?!\W*\s(?i:is|was|would\s+be)\s+(?i:not|wrong|incorrect|false)\b)"
)
_ALONE = re.compile(r"[(\[]([A-Z])[)\]]|(?<![\w'])([B-HJ-Z])(?![\w'])")
_SIDES = re.compile(r"=|≈|→|⇒|>>|\\approx(?![A-Za-z])")
# `Step 2: add them` and `2. Add them`, not `72 clips`, `cost = 5` or `Answer: 72`.
_HEADING = re.compile(
    r"[\W_]*(?:\d+(?:[.):]|\s*[-–—])\s+[^\W\d_]{2,}"
    r"|(?!(?i:the|final|answer|result|total|solution)\b)(?<![\\A-Za-z])[^\W\d_]{2,}\b(?!\s*[=(]))"
)
_DEFINED = re.compile(r"^(?:async\s+def|def|class)\s+(\w+)", re.MULTILINE)
_SPACE = re.compile(r"(?:(?!(?<=\d)[\u00a0\u2009\u202f]\d{3})\s)+")
"""White space between words, but for what divides thousands: with a narrow space `12 500` is one word."""
_MIXED = re.compile(r"\d+/\d+\W*")
_OPERATORS = ("+", "-", "−", "*", "/", "^", "×", "·", "÷")


@dataclass(frozen=True)
class Extraction:
    r"""What was found in a completion.

    Example: `extract("7+8=15\n<ans>15</ans>", ("<ans>", "</ans>"))` is `Extraction("15", True)`

    `obeyed` is whether the asked format was kept. An answer may be found although it was not: then a verifier can still
    tell whether it is correct. `runs_on` is set where text goes on after an answer, also where it does so to give
    another answer, which is obeyed if the format has no right side.
    """

    answer: str | None
    obeyed: bool
    reason: str = ""
    runs_on: bool = False


def extract(text: str, answer_format: Format) -> Extraction:
    """The answer in the asked format.

    With a right side: the text ends with `right`, and the answer begins after the first `left`; it may hold brackets of
    its own, as in `{{[v for v in x]}}`. Without: the answer is what follows `left` (its first occurrence in the last
    line that has it), and is a single line.
    """
    left, right = answer_format
    found = _enclosed(text.strip(), left, right) if right else _marked(text.rstrip(), left)
    if found.obeyed and not found.answer:
        return Extraction("", False, "the answer is empty")
    return found


def _enclosed(text: str, left: str, right: str) -> Extraction:
    _, opened, rest = text.partition(left)
    if not opened:
        return Extraction(None, False, f"no '{left}'")
    first, closed, after = rest.partition(right)
    if not closed:
        return Extraction(rest.strip(), False, f"no '{right}'")
    if not rest.endswith(right):
        return Extraction(first.strip(), False, f"text after '{right}'", runs_on=True)
    if _opens_again(after, left):
        return Extraction(first.strip(), False, f"a second '{left}' after the answer", runs_on=True)
    return Extraction(rest[: -len(right)].strip(), True)


def _opens_again(after: str, left: str) -> bool:
    """Whether a second answer is opened in what follows the first close.

    Brackets may nest within one answer; a tag does not, and nothing goes on in another line.
    """
    before, opened, _ = after.partition(left)
    return bool(opened) and (any(map(str.isalnum, left)) or "\n" in before)


def _marked(text: str, left: str) -> Extraction:
    start = text.rfind(left)
    if start < 0:
        return Extraction(None, False, f"no '{left}'")
    line_start = text.rfind("\n", 0, start) + 1
    rest = text[text.index(left, line_start) + len(left) :].strip()
    answer, goes_on, _ = rest.partition("\n")
    if goes_on:
        return Extraction(answer.strip(), False, "text after the line of the answer", runs_on=True)
    # An earlier answer line means that the text went on after it; the last one counts all the same.
    earlier = any(line.lstrip().startswith(left) for line in text[:line_start].splitlines())
    return Extraction(answer, True, runs_on=earlier)


def extract_number(text: str) -> Extraction:
    r"""Where no format was asked: what `marked_answer` finds, a heading excepted; else all of a line that has no words;
    else the formula that the last number is part of, to the right of its last `=`.

    Example: `1/2` in "It is 1/2.", `x = \frac{1}{2}` in "So $x = \frac{1}{2}$", `45` in "40+5=45 clips"
    """
    text = _TAG.sub(" ", text)
    declared = marked_answer(text)
    if declared is not None and not (_goes_on(text) and _is_heading(declared)):
        return Extraction(declared, True)
    whole = text.strip()
    found = whole if whole and "\n" not in whole and not _PROSE.search(whole) else _last_formula(text)
    return Extraction(_right_side(found), True) if found else Extraction(None, False, "no number")


def _goes_on(text: str) -> bool:
    return "\n" in text.rpartition("####")[2].strip()


def _is_heading(line: str) -> bool:
    """Whether a line of Markdown behind `####` is a heading, as in `Step 2: add them` and `2. Add them`."""
    return bool(_PROSE.search(line)) and (not _DIGIT.search(line) or _HEADING.match(line) is not None)


def _last_formula(text: str) -> str:
    """What the last number is part of: what stands between `$` or the like, else what no space divides, and what an
    operator joins to it.
    """
    shown = next(iter(deque(_DISPLAYED.finditer(text), maxlen=1)), None)
    if shown and _DIGIT.search(shown[0]) and not _DIGIT.search(text, shown.end()):
        return next(filter(None, shown.groups())).strip()
    words = _SPACE.split(next((line for line in reversed(text.splitlines()) if _DIGIT.search(line)), "").strip())
    while words and not _DIGIT.search(words[-1]):
        words.pop()
    first = len(words) - 1
    while first > 1 and words[first - 1] in _OPERATORS and _DIGIT.search(words[first - 2]):
        first -= 2
    if first > 0 and _MIXED.fullmatch(words[first]) and words[first - 1].isdecimal():
        first -= 1
    return " ".join(words[max(first, 0) :])


def _right_side(formula: str) -> str:
    sides = [side for side in _SIDES.split(formula) if _DIGIT.search(side)]
    found = (sides[-1] if len(sides) > 1 else formula).strip().strip("*_`'\"").rstrip(".,;:!?*_`'\" ")
    found = found[1:-1] if found.startswith("<") and found.endswith(">") else found
    return found if found.count("(") == found.count(")") else found.strip("()")


def extract_code(text: str) -> Extraction:
    """Where no format was asked: the last fenced block of Python, else of no language, else of any; else the whole.

    A block that only calls what an earlier one defines shows how to use it: then the program is the earlier one.
    """
    blocks: list[tuple[str, str]] = re.findall(r"```([A-Za-z0-9+]*)[ \t]*\n(.*?)```", text, flags=re.DOTALL)
    kinds = [re.compile(r"(python|py)\d*", re.IGNORECASE), re.compile(""), re.compile(".*")]
    of_kind = ([block for language, block in blocks if kind.fullmatch(language)] for kind in kinds)
    programs = next(filter(None, of_kind), [text])
    while len(programs) > 1 and _only_uses(programs[-1], programs[:-1]):
        programs.pop()
    return _whole(programs[-1])


def _only_uses(block: str, earlier: list[str]) -> bool:
    """Whether a block defines nothing and calls what an earlier one defines."""
    names = {name for each in earlier for name in _DEFINED.findall(each)}
    return not _DEFINED.search(block) and any(re.search(rf"\b{name}\(", block) for name in names)


def extract_text(text: str) -> Extraction:
    r"""Where no format was asked: what follows `####`, else the last `\boxed{…}`, else the whole text."""
    declared = marked_answer(text)
    return _whole(text if declared is None else declared)


def extract_choice(text: str) -> Extraction:
    """The capital letter of a choice, in a text or in an answer that was found in it.

    It begins the text, as in `B`, `(b)` and `B. Paris`; or an answer is announced, as in `the answer is (B)`, of which
    the last counts; or an option is mentioned and not said to be wrong, the last one of these; or no other capital
    stands alone, where `A` and `I` are words unless they stand in brackets.
    """
    first = _CHOSEN.fullmatch(text.strip())
    announced = [] if first else ["".join(each) for each in _ANNOUNCED.findall(text)] or _MENTIONED.findall(text)
    alone = [] if first or announced else {bare or framed for framed, bare in _ALONE.findall(text)}
    found = [first[1].upper()] if first else announced[-1:] or list(alone)
    return Extraction(found[0], True) if len(found) == 1 else Extraction(None, False, "no single choice")


def _whole(text: str) -> Extraction:
    answer = text.strip()
    return Extraction(answer, True) if answer else Extraction("", False, "the answer is empty")


def marked_answer(text: str) -> str | None:
    r"""What follows `####` in its line (as in GSM8K) or is in the last `\boxed{…}`, whichever comes later, if any."""
    _, mark, rest = text.rpartition("####")
    line = rest.strip().partition("\n")[0].strip()
    boxed = _boxed(text)
    return line if mark and line and (boxed is None or r"\boxed{" not in rest) else boxed


def _boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`, whose braces may nest."""
    _, mark, rest = text.rpartition(r"\boxed{")
    depth = 1 if mark else 0
    for index, char in enumerate(rest if mark else ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:index].strip()
    return None
