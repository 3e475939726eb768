"""The program that runs inside the math worker's process: compares two mathematical texts with math-verify.

Started by `judges.math_worker`. A request is `{"answer", "reference", "cpu_seconds"}`, the answer to it `{"verdict"}`:
`equal`, `unequal`, `unread answer`, `unread reference` or `too large to compare`. It runs apart because sympy evaluates
what it parses: `9^{9^{9^9}}` would hang whoever asks, and math-verify's own time limit works in a main thread only.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import resource
import signal
import sys
import unicodedata
from typing import Any

PR_SET_PDEATHSIG = 1
MEMORY_BYTES = 2 << 30
DELIMITED = re.compile(r"\$.*\$|\\\(|\\\[|\\boxed", re.DOTALL)

# What math-verify would misread: it takes `x²` for `x`, `3 1/2` for 2, `0.\overline{3}` for 0, `3t` for 3 tons.
SIGNS = str.maketrans({
    "∞": r"\infty ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "·": r"\cdot ", "π": r"\pi ",
    "–": "-",
})  # fmt: skip
SUPERSCRIPT = re.compile("[⁻⁺]?[²³¹⁰⁴-⁹]+")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
VULGAR = re.compile("[¼-¾⅐-⅞]")
MIXED = re.compile(r"(?<![\w./^{])(\d+)\s+(\d+)/(\d+)(?![\w.])")
REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
LAST_LETTER = re.compile(r"(?<![A-Za-z\\])\s*([cdhlot])(?=[\s.$]*$)")


def as_latex(text: str) -> str:
    """The text in dollar signs, unless it has delimiters: without any, math-verify would pick a number out of it."""
    text = text.replace(r"\$", "").replace("**", "^").replace(r"\varnothing", r"\emptyset").translate(SIGNS)
    text = SUPERSCRIPT.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).replace('−', '-')}}}", text)
    text = ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    text = VULGAR.sub(
        lambda found: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", found[0]).split("⁄")), text
    )
    text = REPEATING.sub(_fraction, MIXED.sub(r"\1\\frac{\2}{\3}", text))
    text = LAST_LETTER.sub(r"{\1}", text)
    return text if DELIMITED.search(text) else f"${text.replace('$', '')}$"


def _fraction(repeating: re.Match[str]) -> str:
    whole, fixed, period = repeating.groups()
    digits = int(f"{whole}{fixed}{period}") - int(f"{whole}{fixed}" or "0")
    return rf"\frac{{{digits}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


def main(parent: int, _: int) -> None:
    """Answer requests until stdin closes; `parent` is with whom it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # it warns, once for each call, that its time limit is off
    import math_verify  # noqa: F401  # takes a second, which is no comparison's

    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    answers.write(b"ready\n")
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])  # it is fatal when it goes off
        try:
            verdict = compare(request["answer"], request["reference"])
        except (MemoryError, RecursionError, OverflowError):
            verdict = "too large to compare"
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps({"verdict": verdict}).encode() + b"\n")


def compare(answer: str, reference: str) -> str:
    """The verdict on two texts.

    Raises:
        MemoryError, RecursionError, OverflowError: one of them, or both together, are too much.
    """
    from math_verify import verify

    expected = _read(reference)
    if all(isinstance(each, str) for each in expected):
        return "equal" if expected and expected == _read(answer) else "unread reference"
    given = _read(answer)
    if all(isinstance(each, str) for each in given):
        return "unread answer"
    try:
        equal = verify(expected, given, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError, OverflowError):
        raise
    except Exception:  # noqa: BLE001  # what sympy cannot compare is not equal
        equal = False
    return "equal" if equal else "unequal"


def _read(text: str) -> list[Any]:
    """What math-verify makes of it: expressions, and a text, which is all where it cannot read it; or nothing."""
    from math_verify import parse

    try:
        return list(parse(as_latex(text), parsing_timeout=None, raise_on_error=True))
    except (MemoryError, RecursionError, OverflowError):
        raise
    except Exception:  # noqa: BLE001  # as where it finds nothing
        return []
