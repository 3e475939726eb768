"""Runs programs that a model wrote, in warm worker processes that fork once for each check.

What holds a program is in `judges.sandbox.confinement`: it has no network, no files but Python's and the system's
libraries and, where namespaces are to be had, an empty `/tmp`, sees no other process and no environment, can start
none, and has limits on CPU time, wall time, memory, threads, size of files and output. It never gets the expected
outputs, which the caller compares; tests are run in another process (`judges.sandbox.bench`).

Where the machine cannot hold it, nothing is run, unless the user sets POSTTRAIN_UNCONFINED_CODE=1: then the limits
are left and what else there is, and a program may read and write files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from judges.worker_process import WorkerGoneError, WorkerPool, WorkerProcess, WorkerSeat
from rollouts.errors import DataError, JudgeError, UserError

GRACE_SECONDS = 10.0
"""How much longer than a check's wall limit the parent waits for the worker to enforce it."""

UNCONFINED = "POSTTRAIN_UNCONFINED_CODE"


@dataclass(frozen=True)
class Result:
    """What a program gave for one input.

    Example: `Result([2, 4])`, `Result(None, "ZeroDivisionError: division by zero")`

    `output` is plain data as JSON knows it (a tuple becomes a list). A non-empty `error` says why there is none.
    """

    output: Any
    error: str = ""


class CodeWorker:
    """Processes that check programs: started when needed, restarted when they died, safe to share by threads.

    Example: `CodeWorker().run("sorted(x)[1:]", [[3, 1, 2]])` is `[Result([2, 3])]`

    Limits are per check, that is for one program on all of its inputs; of a script on each. `cpu_seconds` decides;
    `wall_seconds` is for programs that wait, and so large that a busy machine does not change a verdict.
    """

    def __init__(
        self,
        cpu_seconds: float = 1.0,
        wall_seconds: float = 20.0,
        memory_bytes: int = 256 << 20,
        processes: int = 1,
        without: Sequence[str] = (),
    ) -> None:
        """Starts nothing yet.

        Args:
            cpu_seconds: of a check.
            wall_seconds: of a check.
            memory_bytes: address space of a program's process.
            processes: how many checks go on at once.
            without: parts of the confinement to leave out, for tests; see `judges.sandbox.confinement`.
        """
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._pool = WorkerPool(partial(_started, [f"without={part}" for part in without]), processes)

    def run(self, program: str, inputs: Sequence[Any]) -> list[Result]:
        """Calls the program with each input; one result for each, in order.

        A program is an expression in `x`, a function body that returns (statements separated by `;` or newlines), or a
        definition of `f(x)`, or of another function. Each input is plain data and reaches the program as a fresh copy;
        a list is the arguments of a function with several parameters.

        Raises:
            JudgeError: the worker cannot be started, or dies with harmless programs, too.
            UserError: this machine cannot hold programs, and the user did not allow to run them all the same.
        """
        return self._results({"program": program, "inputs": list(inputs)}, len(inputs))

    def run_script(self, program: str, stdins: Sequence[str]) -> list[Result]:
        """What the program writes for each standard input. A program that reads none but can be called is called.

        Raises:
            JudgeError: see `run`.
            UserError: see `run`.
        """
        return self._results({"program": program, "stdins": list(stdins)}, len(stdins))

    def test(self, program: str, tests: str | Sequence[str]) -> str:
        """Why the program does not pass the tests, empty if it does.

        Args:
            program: source that defines what the tests ask for.
            tests: source that is run after the program but in another process, or single statements.

        Raises:
            DataError: the tests cannot be run, or would never run, whatever the program is.
            JudgeError: see `run`.
            UserError: see `run`.
        """
        hidden = json.dumps(tests if isinstance(tests, str) else list(tests)).encode()
        answer = self._ask({"program": program, "tests": len(hidden)}, hidden)
        if answer is None:
            return "the program killed its worker"
        verdict = json.loads(answer["lines"][0])
        if verdict["broken"]:
            raise DataError(str(verdict["reason"]))
        return "" if verdict["passed"] else _printable(verdict["reason"]) or "the tests fail"

    def close(self) -> None:
        """Stop the processes; the next check starts another."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _results(self, request: dict[str, Any], count: int) -> list[Result]:
        answer = self._ask(request)
        if answer is None:
            return [Result(None, "the program killed its worker")] * count
        results = [_result(line) for line in answer.get("lines", [])][:count]
        missing = Result(None, answer.get("ended") or "the program ended its process")
        return results + [missing] * (count - len(results))

    def _ask(self, request: dict[str, Any], hidden: bytes = b"") -> dict[str, Any] | None:
        """The worker's answer; None if the program killed it twice."""
        with self._pool.seat() as seat:
            try:
                return self._check(seat, request, hidden)
            except WorkerGoneError:
                pass
            try:
                return self._check(seat, request, hidden)
            except WorkerGoneError as error:
                self._check_harmless(seat, error)
                return None

    def _check(self, seat: WorkerSeat, request: dict[str, Any], hidden: bytes = b"") -> dict[str, Any]:
        limits = {
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "memory_bytes": self.memory_bytes,
        }
        return seat.ask(request | limits, self.wall_seconds + GRACE_SECONDS, hidden)

    def _check_harmless(self, seat: WorkerSeat, cause: WorkerGoneError) -> None:
        """Two workers died with the same program: is it the program, or are the workers at fault?"""
        try:
            answer = self._check(seat, {"program": "x", "inputs": [1]})
        except WorkerGoneError as error:
            raise JudgeError(f"the code worker dies whatever it runs: {error}") from error
        if [_result(line) for line in answer.get("lines", [])] != [Result(1)]:
            raise JudgeError(f"the code worker cannot run `x`: {answer.get('ended')}") from cause


def _started(words: Sequence[str]) -> WorkerProcess:
    allowed = ["unconfined"] if os.environ.get(UNCONFINED) == "1" else []
    try:
        # -S: site-packages are of no use there, and looking for them takes most of the start.
        return WorkerProcess("judges.sandbox.child", *words, *allowed, options=["-S"])
    except UserError as error:
        raise UserError(
            f"this machine cannot hold programs that a model wrote ({error}), so none is run; in a container give it "
            f"more rights, or set {UNCONFINED}=1 where such a program may do all that you may"
        ) from None


def _result(line: str) -> Result:
    try:
        row = json.loads(line)
        return Result(None, _printable(row["error"])) if "error" in row else Result(row["output"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return Result(None, "output is not plain data")


def _printable(reason: Any) -> str:
    """A reason is the program's words: halves of surrogates, which JSON can hold and no file, become question marks."""
    return str(reason).encode(errors="replace").decode()
