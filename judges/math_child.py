"""The program that runs inside the math worker's process: compares two mathematical texts with math-verify.

Started by `judges.math_worker`. A request is `{"answer", "reference", "cpu_seconds"}`, the answer to it
`{"equal": bool}`. It runs apart because sympy evaluates what it parses: `9^{9^{9^9}}` would hang whoever asks, and
math-verify's own time limit works in a main thread only.
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

PR_SET_PDEATHSIG = 1
MEMORY_BYTES = 2 << 30
DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")


def as_latex(text: str) -> str:
    """The text in dollar signs, unless it has delimiters: without any, math-verify would pick a number out of it."""
    return text if DELIMITED.search(text) else f"${text}$"


def main(parent: int, _: int) -> None:
    """Answer requests until stdin closes; `parent` is with whom it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # it warns, once for each call, that its time limit is off
    from math_verify import parse, verify

    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    answers.write(b"ready\n")
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])  # it is fatal when it goes off
        try:
            texts = [parse(as_latex(request[key]), parsing_timeout=None) for key in ("reference", "answer")]
            equal = bool(verify(*texts, timeout_seconds=None))
        except Exception:  # noqa: BLE001  # what sympy cannot compare is not equal
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps({"equal": equal}).encode() + b"\n")
