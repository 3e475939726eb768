"""Runs programs that a model wrote, in a warm worker process that forks once for each check.

What holds a program: a process of its own without environment, files or standard streams, limits on CPU time, wall
time, memory, processes, open files, file size and output, a fresh namespace for each input with harmless built-ins
only, and a syntax check that refuses imports and the attributes that lead from a value to the interpreter. Where the
pipeline runs as root, the worker becomes nobody. The program gets the inputs and never the expected outputs, which the
caller compares.

It is not a full sandbox: system calls are not filtered and the network is not cut off, so a program that defeats the
syntax check acts as the user who runs the worker. Until that is closed, give the machine no secrets.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from judges.worker_process import WorkerGoneError, WorkerProcess
from rollouts.errors import JudgeError

GRACE_SECONDS = 10.0
"""How much longer than a check's wall limit the parent waits for the worker to enforce it."""


@dataclass(frozen=True)
class Result:
    """What a program gave for one input.

    Example: `Result([2, 4])`, `Result(None, "ZeroDivisionError: division by zero")`

    `output` is plain data as JSON knows it (a tuple becomes a list). A non-empty `error` says why there is none.
    """

    output: Any
    error: str = ""


class CodeWorker:
    """A worker process that checks programs: started when first used, restarted when it died, safe to share by threads.

    Example: `CodeWorker().run("sorted(x)[1:]", [[3, 1, 2]])` is `[Result([2, 3])]`

    Limits are per check, that is for one program on all of its inputs. `cpu_seconds` decides; `wall_seconds` is for
    programs that wait, and so large that a busy machine does not change a verdict.
    """

    def __init__(self, cpu_seconds: float = 1.0, wall_seconds: float = 20.0, memory_bytes: int = 256 << 20) -> None:
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None

    def run(self, program: str, inputs: list[Any]) -> list[Result]:
        """One result for each input, in order.

        A program is an expression in `x`, a function body that returns (statements separated by `;` or newlines), or a
        definition of `f(x)`. Each input is plain data and reaches the program as a fresh copy.

        Raises:
            JudgeError: the worker cannot be started, or dies with harmless programs, too.
        """
        with self._lock:
            try:
                return self._check(program, inputs)
            except WorkerGoneError:
                pass
            try:
                return self._check(program, inputs)
            except WorkerGoneError as error:
                self._check_harmless(error)
                return [Result(None, "the program killed its worker") for _ in inputs]

    def close(self) -> None:
        """Stop the process; the next `run` starts another."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, program: str, inputs: list[Any]) -> list[Result]:
        if self._process is None or not self._process.usable:
            # -S: site-packages are of no use there, and looking for them takes most of the start.
            self._process = WorkerProcess(Path(__file__).with_name("code_child.py"), "-S")
        request = {
            "program": program,
            "inputs": inputs,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "memory_bytes": self.memory_bytes,
        }
        answer = self._process.ask(request, self.wall_seconds + GRACE_SECONDS)
        results = [_result(line) for line in answer.get("lines", [])][: len(inputs)]
        missing = Result(None, answer.get("ended") or "the program ended its process")
        return results + [missing] * (len(inputs) - len(results))

    def _check_harmless(self, cause: WorkerGoneError) -> None:
        """Two workers died with the same program: is it the program, or are the workers at fault?"""
        try:
            results = self._check("x", [1])
        except WorkerGoneError as error:
            raise JudgeError(f"the code worker dies whatever it runs: {error}") from error
        if results != [Result(1)]:
            raise JudgeError(f"the code worker cannot run `x`: {results[0].error}") from cause


def _result(line: str) -> Result:
    try:
        row = json.loads(line)
        return Result(None, str(row["error"])) if "error" in row else Result(row["output"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return Result(None, "output is not plain data")
