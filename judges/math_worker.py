"""Asks math-verify whether two mathematical texts are equal, in a process that can be killed."""

from __future__ import annotations

import signal
import threading

from judges.worker_process import WorkerGoneError, WorkerProcess
from rollouts.errors import JudgeError

MAX_CHARS = 2000
WALL_SECONDS = 60.0
"""Only for a process that hangs without computing; what a comparison may take is `cpu_seconds`."""


class MathWorker:
    r"""A process that compares: started when first used (1–2 s), restarted after it died, safe to share by threads.

    Example: `MathWorker().equal(r"\frac{1}{2}", "0.5")` is `True`
    """

    def __init__(self, cpu_seconds: float = 3.0) -> None:
        self.cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None

    def equal(self, answer: str, reference: str) -> bool:
        """Whether they are mathematically equal; what takes too long, or cannot be parsed, is not.

        Raises:
            JudgeError: the process cannot be started (is math-verify installed?) or keeps dying.
        """
        if len(answer) > MAX_CHARS:
            return False
        with self._lock:
            try:
                return self._compare(answer, reference)
            except WorkerGoneError as error:
                # Too much computing (the limit is a fatal SIGPROF), or a stack that recursion has blown.
                if error.signal_number in (signal.SIGPROF, signal.SIGSEGV):
                    return False
            try:
                return self._compare(answer, reference)
            except WorkerGoneError as error:
                raise JudgeError(f"math-verify fails on {answer[:80]!r}: {error}") from error

    def close(self) -> None:
        """Stop the process; the next `equal` starts another."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def _compare(self, answer: str, reference: str) -> bool:
        if self._process is None or not self._process.usable:
            self._process = WorkerProcess("judges.math_child")
        request = {"answer": answer, "reference": reference, "cpu_seconds": self.cpu_seconds}
        return bool(self._process.ask(request, WALL_SECONDS).get("equal"))
