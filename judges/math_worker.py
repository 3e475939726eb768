"""Asks math-verify whether two mathematical texts are equal, in a process that can be killed."""

from __future__ import annotations

import signal
from functools import partial

from judges.worker_process import WorkerGoneError, WorkerPool, WorkerProcess
from rollouts.errors import DataError, JudgeError

MAX_CHARS = 2000
WALL_SECONDS = 60.0
"""Only for a process that hangs without computing; what a comparison may take is `cpu_seconds`."""
TOO_LARGE = "too large to compare"


class MathWorker:
    r"""Processes that compare: started when needed (1-2 s), restarted after they died, safe to share by threads.

    Example: `MathWorker().compare(r"\frac{1}{2}", "0.5")` is `(True, "")`
    """

    def __init__(self, cpu_seconds: float = 3.0, processes: int = 1) -> None:
        """Starts none yet.

        Args:
            cpu_seconds: what a comparison may take.
            processes: how many comparisons go on at once.
        """
        self.cpu_seconds = cpu_seconds
        self._pool = WorkerPool(partial(WorkerProcess, "judges.math_child"), processes)

    def compare(self, answer: str, reference: str, words: bool = False) -> tuple[bool, str]:
        """Whether they are mathematically equal, and why not where that is no wrong answer.

        Args:
            answer: what a model said; if it takes too much time or memory it is not equal.
            reference: what it should have said.
            words: the reference may be no mathematics; then it equals nothing but itself.

        Raises:
            DataError: no answer could be equal, since the reference cannot be read or is itself too large.
            JudgeError: the process cannot be started (is math-verify installed?) or keeps dying.
        """
        if len(answer) > MAX_CHARS:
            return False, TOO_LARGE
        verdict = self._ask(answer, reference)
        if verdict == TOO_LARGE and self._ask("7", reference) == TOO_LARGE:
            raise DataError(f"answer {reference[:80]!r} is too large to compare with anything")
        if verdict == "unread reference" and not words:
            raise DataError(
                f"answer {reference[:80]!r} cannot be read as mathematics; mend it, or compare it as text by 'exact'"
            )
        reasons = {TOO_LARGE: TOO_LARGE, "unread answer": "the answer cannot be read as mathematics"}
        return verdict == "equal", reasons.get(verdict, "")

    def _ask(self, answer: str, reference: str) -> str:
        """The child's verdict, also where it dies of it."""
        request = {"answer": answer, "reference": reference, "cpu_seconds": self.cpu_seconds}
        with self._pool.seat() as seat:
            try:
                return str(seat.ask(request, WALL_SECONDS).get("verdict"))
            except WorkerGoneError as error:
                # Too much computing (the limit is a fatal SIGPROF), or a stack that recursion has blown.
                if error.signal_number in (signal.SIGPROF, signal.SIGSEGV):
                    return TOO_LARGE
            try:
                return str(seat.ask(request, WALL_SECONDS).get("verdict"))
            except WorkerGoneError as error:
                raise JudgeError(f"math-verify fails on {answer[:80]!r}: {error}") from error

    def close(self) -> None:
        """Stops the processes; the next comparison starts another."""
        self._pool.close()
