"""`make chaos`: RL runs with real engines are killed again and again and continued; then their records are compared.

Any process of a run may be hit, at any moment: the driver, Ray's own, an engine, the trainer, the verifier. What the
run survives by itself it goes on from; else it is continued with `--resume auto`. In the end `posttrain ledger
--verify` must find every draw of the surviving lineage exactly once, and the run is compared with one that nobody
disturbed: a synchronous one by its draws and their tokens, step by step, and by its parameters in the end; an
asynchronous one by how long the answers are that it was trained on, since a resume that forgets what was under way
would favour short ones.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from posttrain.audit import audit
from posttrain.ledger import Ledger
from posttrain.rundir import newest_checkpoint
from posttrain.trained_log import TrainedLog
from tests.integration.commands import SMALL, Running, posttrain

WORDS = [
    *SMALL, "rl.checkpoint_every=2", "rl.drift_every=0", "rl.learning_rate=1e-6", "rl.lr_scheduler_type=constant",
    "rl.curriculum.band_start=[0.15,0.8]", "rl.curriculum.band_end=[0.15,0.8]",
    "rl.curriculum.explore_until=0",
]  # fmt: skip
"""A policy that hardly changes, so that lengths can be compared; nothing that depends on how many steps there are."""
GONE_SECONDS = 30.0
"""Within which every process of a run that has ended is to be gone, on a busy machine."""
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own, which for a minute try to report that their raylet is gone, and then go too."""


@dataclass
class Ordeal:
    """What a run went through, and what its records say in the end."""

    kills: list[str] = field(default_factory=list)  # whom, in order
    lives: int = 0
    steps: int = 0
    draws: int = 0
    void: int = 0
    problems: tuple[str, ...] = ()
    seconds: float = 0.0


def suffer(
    cwd: Path,
    words: Sequence[str],
    kills: int,
    seed: int,
    longest: float = 45.0,
    once_training: bool = False,
    more: int = 10,
) -> Ordeal:
    """Kills a run so many times, then lets it make some more steps; the run directory is `cwd/r`.

    Args:
        cwd: an empty directory.
        words: overrides of the tiny preset.
        kills: how many processes are killed.
        seed: of the moments and the victims.
        longest: seconds from the start of a life, or from the last kill, within which the next one comes.
        once_training: seconds are counted from the first step of a life; in the first life from one that has a
            checkpoint behind it, so that the next one is a continuation.
        more: steps behind the newest checkpoint that the last life makes.
    """
    rng, found, started = np.random.default_rng(seed), Ordeal(), time.monotonic()
    while len(found.kills) < kills:
        running = Running(*command(words, 10**6), cwd=cwd)
        found.lives += 1
        try:
            if once_training:
                running.wait_for("step    3  reward" if found.lives == 1 else "reward")
            while not _ended(running, rng.uniform(0, longest)) and len(found.kills) < kills:
                _kill_one(running, rng, found)
            if running.process.poll() is None:
                os.kill(running.process.pid, signal.SIGKILL)
                running.process.wait()
            _check_gone(running)
        finally:
            running.end()
    newest = newest_checkpoint(cwd / "r", "rl")
    found.steps = (int(newest.name.removeprefix("step-")) if newest else 0) + more
    posttrain(*command(words, found.steps), cwd=cwd)
    found.lives += 1
    verified = audit(cwd / "r")
    found.draws, found.problems = verified.draws, verified.problems
    found.void = Ledger(cwd / "r/ledger.db", read_only=True).counts().get("void", 0)
    found.seconds = round(time.monotonic() - started, 1)
    return found


def command(words: Sequence[str], steps: int) -> list[str]:
    """`posttrain …`: the run, or its continuation."""
    return ["rl", "tiny", "--run", "r", "--resume", "auto", *WORDS, *words, f"rl.steps={steps}"]


def _ended(running: Running, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while running.process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return running.process.poll() is not None


def _check_gone(running: Running) -> None:
    end = time.monotonic() + GONE_SECONDS
    while left := {pid: name for pid, name in running.processes().items() if name not in LINGERING}:
        assert time.monotonic() < end, f"still there {GONE_SECONDS:.0f} s after the driver: {left}"
        time.sleep(0.1)


def _kill_one(running: Running, rng: np.random.Generator, found: Ordeal) -> None:
    """Kills the driver, an actor (or what it has started), or a process of Ray's own: each kind is as likely."""
    processes = running.processes()
    kinds: dict[str, list[int]] = {}
    for pid, command_line in sorted(processes.items()):
        actor = command_line.startswith("ray::") and command_line not in LINGERING
        kinds.setdefault("driver" if pid == running.process.pid else "actor" if actor else "ray", []).append(pid)
    victim = int(rng.choice(kinds[str(rng.choice(sorted(kinds)))]))
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return
    name = next((word for word in processes[victim].split() if "python" not in word and word[0] != "-"), "?")
    name = "driver" if victim == running.process.pid else name.rsplit("/", 1)[-1]
    found.kills.append(name)
    print(f"kill {len(found.kills)}: {name}", file=sys.stderr, flush=True)


def trained(run: Path) -> TrainedLog:
    """What the trainer says it was trained on: the draws of each step, with digests of their tokens."""
    log = TrainedLog.read(_newest(run))
    assert None not in log.digest
    return log


def parameters_apart(one: Path, other: Path) -> float:
    """The largest difference of a parameter between two runs' newest checkpoints."""
    models = [load_file(_newest(run) / "model.safetensors") for run in (one, other)]
    assert models[0].keys() == models[1].keys()
    return max(float(np.abs(models[0][name] - models[1][name]).max()) for name in models[0])


def _newest(run: Path) -> Path:
    checkpoint = newest_checkpoint(run, "rl")
    assert checkpoint is not None
    return checkpoint


def main() -> None:
    """Both kinds of runs, one after the other; a line of JSON for each, and exit code 1 if one is not as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each of the two runs (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    holds = True
    for max_staleness in (0, 2):
        words = [f"rl.max_staleness={max_staleness}"]
        with tempfile.TemporaryDirectory() as folder:
            broken, whole = Path(folder, "broken"), Path(folder, "whole")
            broken.mkdir()
            whole.mkdir()
            found = suffer(broken, words, given.kills, given.seed)
            posttrain(*command(words, found.steps), cwd=whole, limit=3600)
            line = {"max_staleness": max_staleness, **asdict(found)}
            if max_staleness == 0:
                same = trained(broken / "r") == trained(whole / "r")
                apart = parameters_apart(broken / "r", whole / "r")
                line |= {"same_draws_and_tokens": same, "parameters_apart": apart}
                holds &= same and apart == 0
            else:
                line |= (compared := compare_lengths(trained(broken / "r"), trained(whole / "r")))
                holds &= abs(compared["standard_errors"]) < 3.5
            holds &= not found.problems
            print(json.dumps(line), flush=True)
    sys.exit(0 if holds else 1)


def compare_lengths(broken: TrainedLog, whole: TrainedLog) -> dict[str, float]:
    """Mean tokens of a group in both, and by how many standard errors they differ."""
    means = [float(np.mean(log.tokens)) for log in (broken, whole)]
    error = np.sqrt(sum(np.var(log.tokens) / len(log.tokens) for log in (broken, whole)))
    return {
        "mean_tokens": means[0], "mean_tokens_undisturbed": means[1], "standard_errors": (means[0] - means[1]) / error,
    }  # fmt: skip


if __name__ == "__main__":
    main()
