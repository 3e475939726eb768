"""Runs `posttrain` as a person does: a process of its own, which leaves no other process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Processes = dict[int, str]
"""Process id → command line."""

SMALL = [
    "generators.count=1",
    "rl.generators=1",
    "prune.enabled=false",
    "data.demonstrations.limit=200",
    "data.heldout.limit=30",
    "sft.threads=1",
    "sft.per_device_train_batch_size=20",
    "sft.logging_steps=1",
    "rl.prompts_per_step=6",
    "rl.group_size=4",
    "rl.sampling.max_tokens=48",
    "rl.eval_every=0",
]
"""Overrides of the tiny preset that make any stage a matter of seconds."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line on stderr of a command that a user's mistake ended, without the name before it."""
        assert self.err.startswith("posttrain: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("posttrain: ").rstrip("\n")


class Running:
    """A command in a session of its own, so that every process that it starts can be told."""

    def __init__(self, *words: str, cwd: Path, env: Mapping[str, str | None] | None = None) -> None:
        """Starts `posttrain WORDS`; `env` is added to the environment, None takes a variable away."""
        variables = {**os.environ, "RAY_ADDRESS": None, "COLUMNS": "200", **(env or {})}
        self._files = [(cwd / f"{time.monotonic_ns()}.{name}") for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "posttrain", *words],
                cwd=cwd,
                env={name: value for name, value in variables.items() if value is not None},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        """What it said so far."""
        return self._files[1].read_text()

    def wait_for(self, text: str, limit: float = 240) -> None:
        """Waits until it has said something."""
        end = time.monotonic() + limit
        while text not in self.err:
            assert self.process.poll() is None, f"ended before it said {text!r}:\n{self.err}"
            assert time.monotonic() < end, f"did not say {text!r} within {limit:.0f} s:\n{self.err}"
            time.sleep(0.05)

    def ended(self, limit: float = 400) -> Ended:
        """Waits for the end of the command itself."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"did not end within {limit:.0f} s:\n{self.err}") from None
        return Ended(code, self._files[0].read_text(), self.err)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to every process of the terminal's foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def processes(self) -> Processes:
        """The processes of its session that are alive, itself included."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (command := _of_session(entry, self.process.pid)):
                found[int(entry.name)] = command
        return found

    def left(self, patience: float = 20.0) -> Processes:
        """The processes that are still there, after a moment in which the last of them may go."""
        end = time.monotonic() + patience
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def end(self) -> None:
        """Ends whatever is left of it; for a test that failed."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _of_session(entry: Path, session: int) -> str | None:
    """The command line of a process that belongs to a session and is no zombie."""
    try:
        state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        if int(its_session) != session or state in "ZX":
            return None
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "?"
    except (OSError, ValueError):
        return None


def posttrain(
    *words: str, cwd: Path, env: Mapping[str, str | None] | None = None, code: int = 0, limit: float = 400
) -> Ended:
    """Runs a command to its end, asserts its exit code, and that it left no process."""
    running = Running(*words, cwd=cwd, env=env)
    try:
        ended = running.ended(limit)
        assert ended.code == code, f"exit code {ended.code}:\n{ended.out}\n{ended.err}"
        assert running.left() == {}
        return ended
    finally:
        running.end()
