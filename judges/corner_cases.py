"""Finds the corner cases of response quality that are mined for preference pairs, in five kinds.

| kind | is |
|---|---|
| `format` | the asked format is not obeyed, though the model stopped by itself and nothing below explains it |
| `run_on` | the completion was truncated, or text goes on after the answer |
| `empty` | there is nothing but white space, or an empty answer in the asked format |
| `repetition` | something is repeated back to back, see `repeats` |
| `refusal` | the completion begins by declining, and does not solve: prompts that can be verified are harmless |

All are cheap: no model and no worker is asked.
"""

from __future__ import annotations

import re

from judges.answers import Extraction, extract
from rollouts.types import Prompt, Rollout

KINDS = ("format", "run_on", "empty", "repetition", "refusal")

PHRASE_TIMES, CODE_TIMES = 4, 8
MAX_PHRASE_WORDS = 16
TAIL_CHARS = 2000
_LETTERS = re.compile(r"(\S{1,16}?)\1{7,}")
MIN_LETTERS = 32
_REFUSAL = re.compile(
    r"(?:(?:i['’]?m|i am) (?:very |really |so )?sorry|sorry|unfortunately|i apologi[sz]e|as an ai\b)?"
    r"[,.;:!]?\s*(?:but )?"
    r"(?:i (?:can['’]?t|cannot|can not|won['’]?t|will not|am unable to|am not able to|must decline)"
    r"|i['’]m (?:unable|not able) to|as an ai\b|i (?:do not|don['’]t) feel comfortable)\b"
)
"""How refusals begin, in small letters."""


def corner_cases(prompt: Prompt, rollout: Rollout) -> set[str]:
    """The kinds of corner case, of `KINDS`, that the rollout shows; most show none."""
    found = extract(rollout.text, prompt.answer_format) if prompt.answer_format else None
    kinds = set()
    if not rollout.text.strip() or (found is not None and found.answer == ""):
        kinds.add("empty")
    if rollout.truncated or (found is not None and found.runs_on):
        kinds.add("run_on")
    if not rollout.outcome and _REFUSAL.match(rollout.text.strip().lower()):
        kinds.add("refusal")
    if found is not None and not found.obeyed and not kinds:
        kinds.add("format")
    if _repetitive(prompt, rollout.text, found):
        kinds.add("repetition")
    return kinds


def _repetitive(prompt: Prompt, text: str, found: Extraction | None) -> bool:
    """Code repeats itself by nature (`[v for v in [v for v in …`), as an answer may: there it takes more times."""
    if prompt.tests:
        return repeats(text, CODE_TIMES)
    if found is None or not found.obeyed or not found.answer:
        return repeats(text, PHRASE_TIMES)
    working = text[: text.rfind(found.answer)]
    return repeats(working, PHRASE_TIMES) or repeats(found.answer, CODE_TIMES)


def repeats(text: str, times: int) -> bool:
    """Whether the text repeats itself back to back: at least `times` times the same line (blank ones aside) or the same
    1 to 16 words, or, in its last 2,000 characters, 8 times the same 1 to 16 characters, 32 characters in all.

    What is repeated has a letter or a digit, so that rules and tables do not count. Costs about 16 comparisons a word.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if _back_to_back(lines, 1, times):
        return True
    words = text.split()
    if any(_back_to_back(words, length, times) for length in range(1, min(MAX_PHRASE_WORDS, len(words) // times) + 1)):
        return True
    runs = (match.group() for match in _LETTERS.finditer(text[-TAIL_CHARS:]))
    return any(len(run) >= MIN_LETTERS and any(map(str.isalnum, run)) for run in runs)


def _back_to_back(items: list[str], length: int, times: int) -> bool:
    """Whether some `length` items in a row come `times` times."""
    matches, needed = 0, length * (times - 1)
    for index in range(length, len(items)):
        matches = matches + 1 if items[index] == items[index - length] else 0
        if matches >= needed and any(char.isalnum() for item in items[index - length : index] for char in item):
            return True
    return False
