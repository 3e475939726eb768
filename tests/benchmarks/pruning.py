"""What pruning is worth: RL after SFT on what the judge kept, on as many at random, and on all demonstrations.

Five seeds. Each arm: prune, light SFT, RL for the same number of steps, then pass@1 on the hard held-out prompts (the
two upper levels of difficulty), at the temperature at which the arm is best. That is found on other samples than those
that count, since the best of several is high by luck. The judge's verdicts are the same for all. `value` is the smaller
of the lower ends of the gains of `judge` over `random` and over `all`, in pairs of the same seed (two-sided 95 %
interval by Student's t); beside it the mean gains, what SFT did to entropy, and where SFT alone ended. Target: 0.

Budget: about four minutes an arm on two cores, 15 arms: an hour.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.cluster import Cluster
from posttrain.config import Config, load_config, resolve_data
from posttrain.pipeline import evaluate_checkpoint
from posttrain.prune import prune
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from posttrain.sft import train_sft
from tests.benchmarks.harness import Bench, Measurement, Options, column, spread

ARMS = {"judge": [], "random": ["prune.method=random"], "all": ["prune.enabled=false"]}
HARD = 4
"""Difficulty from which on a prompt is hard, of 5."""
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t: the 97.5 % quantile, by degrees of freedom."""


def gain(ours: list[float], others: list[float]) -> dict[str, Any]:
    """The mean gain in pairs and its 95 % interval; None where there are too few.

    Example: `gain([0.5, 0.6], [0.4, 0.4])` has mean 0.15 and interval 0.15 ± 12.706 × 0.05.
    """
    gains = [one - other for one, other in zip(ours, others, strict=False)]
    mean = statistics.mean(gains) if gains else None
    half = T975[len(gains) - 1] * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    interval = None if mean is None or half is None else (mean - half, mean + half)
    return {"seeds": len(gains), "mean": mean, "ci95": interval, "gains": gains}


def hard_prompts(folder: Path) -> Path:
    """The hard ones of the tiny world's held-out prompts, in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hard.jsonl"
    lines = Path(resolve_data("tiny:heldout")).read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["difficulty"] >= HARD))
    return path


class Runs:
    """Runs of the first three stages."""

    def __init__(self, bench: Bench, overrides: list[str]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
        """
        self._folder, self._overrides = bench.runs_folder(), overrides

    def measure(self, arm: str, seed: int) -> Measurement:
        """One run: what SFT did, and pass@1 on hard prompts after SFT and after RL."""
        heldout, folder = hard_prompts(self._folder), self._folder / f"{arm}-{seed}"
        words = [*self._overrides, f"seed={seed}", f"judge.cache={self._folder / 'verdicts.sqlite'}", *ARMS[arm]]
        config = load_config("tiny", [*words, f"data.heldout.path={heldout}"])
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        rundir = RunDir(folder, config)
        if config.prune.enabled:
            prune(config, rundir)
        started = train_sft(config, rundir)
        with Cluster(config):
            checkpoint = train_rl(config, rundir)
            before, after = _at_its_best(config, started), _at_its_best(config, checkpoint)
        sft = json.loads((folder / "sft" / "summary.json").read_text())
        shutil.rmtree(folder)
        return {
            "temperature": after[0], "best": after[1], "sft_best": before[1],
            "entropy": sft["entropy"][1], "demonstrations": sft["demonstrations"],
        }  # fmt: skip


def _at_its_best(config: Config, checkpoint: Path) -> tuple[str, float]:
    """(temperature, pass@1 at it); the same samples for every arm and seed of training."""
    tried, counted = (
        evaluate_checkpoint(config.model_copy(update={"seed": seed}), str(checkpoint)).by_temperature for seed in (1, 0)
    )
    best = max(tried, key=tried.__getitem__)
    return best, counted[best]


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    steps, seeds = (2, 1) if options.quick else (60, 5)
    overrides = [
        f"rl.steps={steps}", f"rl.checkpoint_every={steps}", "rl.eval_every=0",
        "eval.samples=8", "eval.samples_other=8", "eval.temperatures=[0.3,0.6,0.8,1.0]", "eval.pass_k=[1]",
    ]  # fmt: skip
    if options.quick:
        overrides += ["data.demonstrations.limit=64", "data.heldout.limit=8", "eval.samples=1", "eval.samples_other=1"]
        overrides += ["rl.prompts_per_step=3", "rl.quotas=null", "rl.group_size=4"]
    settings = {"preset": "tiny", "overrides": overrides, "arms": ARMS, "seeds": seeds, "hard": HARD}
    bench = Bench("pruning", options, settings, (Path(__file__),))
    runs = Runs(bench, overrides)
    measured = bench.interleave({arm: partial(runs.measure, arm) for arm in ARMS}, seeds)
    best = {arm: column(found, "best") for arm, found in measured.items()}
    gains = {other: gain(best["judge"], best[other]) for other in ARMS if other != "judge"}
    complete = all(each["seeds"] == seeds for each in gains.values())
    return bench.line(
        min(each["ci95"][0] for each in gains.values()) if complete and seeds > 1 else None, 0.0, "at least",
        unit="lower end of the smaller gain in pass@1 on hard prompts", gains=gains, best=best,
        temperatures={arm: column(found, "temperature") for arm, found in measured.items()},
        **{name: _medians(measured, name) for name in ("sft_best", "entropy", "demonstrations")},
    )  # fmt: skip


def _medians(measured: Mapping[str, list[Measurement]], name: str) -> dict[str, float]:
    return {arm: spread(column(found, name))["median"] for arm, found in measured.items() if found}
