"""Asks math-verify whether two mathematical texts are equal, in a process that can be killed."""

from __future__ import annotations

import signal
from functools import partial

from judges.worker_process import WorkerGoneError, WorkerPool, WorkerProcess
from rollouts.errors import JudgeError

MAX_CHARS = 2000
WALL_SECONDS = 60.0
"""Only for a process that hangs without computing; what a comparison may take is `cpu_seconds`."""


class MathWorker:
    r"""Processes that compare: started when needed (1-2 s), restarted after they died, safe to share by threads.

    Example: `MathWorker().equal(r"\frac{1}{2}", "0.5")` is `True`
    """

    def __init__(self, cpu_seconds: float = 3.0, processes: int = 1) -> None:
        """Starts none yet.

        Args:
            cpu_seconds: what a comparison may take.
            processes: how many comparisons go on at once.
        """
        self.cpu_seconds = cpu_seconds
        self._pool = WorkerPool(partial(WorkerProcess, "judges.math_child"), processes)

    def equal(self, answer: str, reference: str) -> bool:
        """Whether they are mathematically equal; what takes too long, or cannot be parsed, is not.

        Raises:
            JudgeError: the process cannot be started (is math-verify installed?) or keeps dying.
        """
        if len(answer) > MAX_CHARS:
            return False
        request = {"answer": answer, "reference": reference, "cpu_seconds": self.cpu_seconds}
        with self._pool.seat() as seat:
            try:
                return bool(seat.ask(request, WALL_SECONDS).get("equal"))
            except WorkerGoneError as error:
                # Too much computing (the limit is a fatal SIGPROF), or a stack that recursion has blown.
                if error.signal_number in (signal.SIGPROF, signal.SIGSEGV):
                    return False
            try:
                return bool(seat.ask(request, WALL_SECONDS).get("equal"))
            except WorkerGoneError as error:
                raise JudgeError(f"math-verify fails on {answer[:80]!r}: {error}") from error

    def close(self) -> None:
        """Stops the processes; the next comparison starts another."""
        self._pool.close()
