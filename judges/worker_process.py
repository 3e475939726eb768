"""A warm child process that answers one line of JSON with one line of JSON, each within a deadline.

What a model wrote is never evaluated in the process that trains: `code_worker` and `math_worker` send it to a process
of this kind, which can be killed whatever it is doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rollouts.errors import JudgeError, UserError

START_SECONDS = 60.0
"""How long a worker may take to say that it is ready; generous, since the machine may be busy training."""


ROOT = Path(__file__).parents[1]
"""Where the package lies, which `python -I` would not find by itself."""


class WorkerGoneError(Exception):
    """The process died, or did not answer in time and was killed; `signal_number` is what it died of, 0 if nothing."""

    def __init__(self, message: str, signal_number: int = 0) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def _new_spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="judges-spawner")


# Linux sends PR_SET_PDEATHSIG when the *thread* that started the child ends, so a worker that was started from a
# short-lived thread would die with it. One lasting thread starts them all.
_spawner = _new_spawner()


def _renew_spawner() -> None:
    global _spawner  # noqa: PLW0603
    _spawner = _new_spawner()


os.register_at_fork(after_in_child=_renew_spawner)


class WorkerProcess:
    """One running child: its own session and process group, an empty environment, a directory that is already deleted.

    It runs `main(pid, pipe, *words)` of a module by `python -I`: with our process id, by which it knows whether we are
    still there, and a file by which `ask` gives it what is hidden from the main request. It writes the line `ready`,
    then reads requests and writes answers. It is expected to set PR_SET_PDEATHSIG and to leave when stdin closes.

    Raises:
        JudgeError: the process cannot be started.
        UserError: it says that it will not work here, instead of `ready`.
    """

    def __init__(self, module: str, *words: str, options: Sequence[str] = ()) -> None:
        self._name = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        hidden, self._hidden = os.pipe()
        start = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {module} import main; sys.path.pop(0); "
            f"main({os.getpid()}, {hidden}, *{words!r})"
        )
        command = [sys.executable, "-I", "-W", "ignore", *options, "-c", start]
        try:
            self._process = _spawner.submit(self._spawn, command, hidden).result()
        except (OSError, RuntimeError) as error:
            os.close(self._hidden)
            raise JudgeError(f"{module} cannot be started: {error}") from error
        finally:
            os.close(hidden)
        self._finalizer = weakref.finalize(self, _clean_up, self._process, self._hidden, os.getpid())
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._hidden, False)
        self._buffer = b""
        self._owner = os.getpid()
        try:
            line = self._read_line(time.monotonic() + START_SECONDS)
        except WorkerGoneError as error:
            raise JudgeError(f"{module} cannot be started: {error}") from None
        if line != b"ready":
            self.close()
            raise UserError(line.decode(errors="replace"))

    def _spawn(self, command: list[str], hidden: int) -> subprocess.Popen[bytes]:
        # Deleted as soon as the process is in it, it is empty for good: nothing can be created there, nor stay behind.
        with tempfile.TemporaryDirectory(prefix="posttrain-worker-") as directory:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                cwd=directory,
                env={},
                start_new_session=True,
                pass_fds=(hidden,),
            )

    @property
    def usable(self) -> bool:
        """Whether it is ours and alive; after a fork the child must start its own."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float, hidden: bytes = b"") -> dict[str, Any]:
        """The answer to `request`; `hidden` comes to it by the other pipe.

        Raises:
            WorkerGoneError: the process died or did not answer within `seconds`; either way it is gone now.
        """
        deadline = time.monotonic() + seconds
        self._write(self._to, json.dumps(request).encode() + b"\n", deadline)
        self._write(self._hidden, hidden, deadline)
        line = self._read_line(deadline)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._gone("it answered what is not JSON") from None
        return answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        """Kill the process with its group."""
        self._finalizer()

    def _write(self, file: int, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [file], [], max(0.0, deadline - time.monotonic()))[1]:
                raise self._gone("it did not read its request in time")
            try:
                view = view[os.write(file, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._gone("it died") from None

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._gone("it did not answer in time")
            chunk = os.read(self._from, 1 << 16)
            if not chunk:
                raise self._gone("it died")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _gone(self, what: str) -> WorkerGoneError:
        # A process that closed its pipe is dying: wait for the cause of its death, before ours covers it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0 if what == "it died" else 0.0)
        status = self._process.poll()
        self.close()
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
        if status is not None:
            what += f" with status {status}"
        return WorkerGoneError(f"{what}: {last}" if last else what, -status if status and status < 0 else 0)


class WorkerPool:
    """Processes of one kind, each started when it is first needed; safe to share by threads."""

    def __init__(self, start: Callable[[], WorkerProcess], size: int) -> None:
        """Starts none yet.

        Args:
            start: starts a process.
            size: how many there may be at once.
        """
        self.seats = [WorkerSeat(start) for _ in range(size)]
        self._free: queue.LifoQueue[WorkerSeat] = queue.LifoQueue()  # the warm ones first
        for seat in self.seats:
            self._free.put(seat)

    @contextlib.contextmanager
    def seat(self) -> Iterator[WorkerSeat]:
        """One of them, for oneself; waits until one is free."""
        seat = self._free.get()
        try:
            with seat.lock:
                yield seat
        finally:
            self._free.put(seat)

    def close(self) -> None:
        """Stops all; the next use starts them again."""
        for seat in self.seats:
            with seat.lock:
                seat.close()


class WorkerSeat:
    """The place of one process, which is started anew when it is gone."""

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        self.lock = threading.Lock()
        self.process: WorkerProcess | None = None
        self._start = start

    def ask(self, request: dict[str, Any], seconds: float, hidden: bytes = b"") -> dict[str, Any]:
        """See `WorkerProcess.ask`."""
        if self.process is None or not self.process.usable:
            self.close()
            self.process = self._start()
        return self.process.ask(request, seconds, hidden)

    def close(self) -> None:
        """Stops the process."""
        if self.process is not None:
            self.process.close()
            self.process = None


def _clean_up(process: subprocess.Popen[bytes], hidden: int, owner: int) -> None:
    """Kill and reap. A forked copy of the owner leaves the process to the owner."""
    if os.getpid() != owner:
        return
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    os.close(hidden)
