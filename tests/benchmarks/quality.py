"""What staleness costs: held-out pass@1 after asynchronous RL, beside synchronous RL on as many groups.

RL with `max_staleness` 0, 1, 2, 4 and 8, five seeds each, all from one SFT checkpoint, for the same number of trained
groups at a constant learning rate, with all draws in the engine at once, which makes tokens as stale as the bound
allows; then pass@1 at temperature 1. The gap is that of the synchronous runs less the others, in pairs of the same
seed; its upper bound is one-sided, 95 %, by Student's t over the seeds. Target: at most 0.03 for each of 1, 2 and 4;
`value` is the largest of the three bounds. At 8 also with each off-policy correction and with the loss `aipo`; no
target.

An arm is one run with its evaluation. Arms are kept as they finish, so that the whole may be run over several sittings:
`--arms 10` measures at most ten more and stops. `value` is null until 1, 2 and 4 are complete; gaps of seeds that are
finished are told before.

Budget: about 90 s an arm on two cores, 45 arms: 70 minutes; the SFT checkpoint first, 2 minutes.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from posttrain.cluster import Cluster
from posttrain.config import load_config
from posttrain.pipeline import evaluate_checkpoint
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from tests.benchmarks.harness import Bench, Measurement, Options
from tests.benchmarks.start import sft_checkpoint

SYNC = "staleness 0"
HELD = ("staleness 1", "staleness 2", "staleness 4")
ARMS = {
    **{f"staleness {bound}": [f"rl.max_staleness={bound}"] for bound in (0, 1, 2, 4, 8)},
    **{
        f"staleness 8, {correction}": ["rl.max_staleness=8", f"rl.correction={correction}"]
        for correction in ("token_truncate", "token_mask", "sequence_mask")
    },
    "staleness 8, aipo": ["rl.max_staleness=8", "rl.algorithm=aipo"],
}
"""Each arm's overrides of the preset."""

T95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
"""Student's t: the 95 % quantile, by degrees of freedom."""


def gap(sync: dict[int, float], other: dict[int, float]) -> dict[str, Any]:
    """The mean gap in pairs of the same seed, and its upper bound; None where there are too few.

    Example: `gap({0: 0.7, 1: 0.72}, {0: 0.69, 1: 0.69})` has mean 0.02 and upper bound 0.02 + 6.314 × 0.01.
    """
    gaps = [sync[seed] - other[seed] for seed in sorted(sync.keys() & other.keys())]
    mean = statistics.mean(gaps) if gaps else None
    upper = None
    if mean is not None and len(gaps) > 1:
        upper = mean + T95[len(gaps) - 1] * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return {"seeds": len(gaps), "mean": mean, "upper_95": upper}


class Runs:
    """RL runs from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
        """
        self._folder, self._overrides, self._bench = bench.runs_folder(), overrides, bench

    def measure(self, arm: str, seed: int) -> Measurement:
        """One run and its evaluation."""
        words = [
            *self._overrides,
            f"model={sft_checkpoint(self._bench, self._folder, self._overrides)}",
            f"seed={seed}",
            *ARMS[arm],
        ]
        config = load_config("tiny", words)
        folder = self._folder / f"{arm.replace(', ', '-').replace(' ', '-')}-seed-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        with Cluster(config):
            rundir = RunDir(folder, config)
            checkpoint = train_rl(config, rundir)
            # The same samples for every arm and seed of training: what differs is the policy.
            report = evaluate_checkpoint(config.model_copy(update={"seed": 0}), str(checkpoint))
        summary = self._summary(rundir)
        shutil.rmtree(folder)
        return {"pass@1": report.pass_at_1, **summary}

    def _summary(self, rundir: RunDir) -> Measurement:
        found = json.loads((rundir.path / "rl" / "summary.json").read_text())
        return {name: found[name] for name in ("groups_trained", "max_staleness_seen", "seconds")}


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    steps, seeds = (2, 1) if options.quick else (60, 5)
    overrides = [
        f"rl.steps={steps}", "rl.learning_rate=2e-4", "rl.lr_scheduler_type=constant", "rl.eval_every=0",
        f"rl.checkpoint_every={steps}", "rl.max_concurrent_rollouts=null",
        "eval.samples=4", "eval.temperatures=[1.0]", "eval.pass_k=[1]",
    ]  # fmt: skip
    if options.quick:
        overrides += ["prune.enabled=false", "data.demonstrations.limit=64", "data.heldout.limit=8"]
        overrides += ["rl.prompts_per_step=3", "rl.quotas=null", "rl.group_size=4", "eval.samples=1"]
    arms = [SYNC, "staleness 8, aipo"] if options.quick else list(ARMS)
    settings = {"preset": "tiny", "overrides": overrides, "arms": {arm: ARMS[arm] for arm in arms}, "seeds": seeds}
    bench = Bench("quality", options, settings, (Path(__file__),))
    runs = Runs(bench, overrides)
    found: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    held = [arm for arm in arms if arm in (SYNC, *HELD)]
    for part in (held, [arm for arm in arms if arm not in held]):  # what the target is about comes first
        measured = bench.interleave({arm: lambda seed, arm=arm: runs.measure(arm, seed) for arm in part}, seeds)
        found |= {arm: {seed: each["pass@1"] for seed, each in enumerate(values)} for arm, values in measured.items()}
    gaps = {arm: gap(found[SYNC], found[arm]) for arm in arms if arm != SYNC}
    uppers = [gaps[arm]["upper_95"] for arm in HELD if arm in gaps and gaps[arm]["seeds"] == seeds]
    complete = len(uppers) == len(HELD) and None not in uppers
    return bench.line(
        max(uppers) if complete else None, 0.03, "at most",
        unit="largest upper 95 % bound of the gap in pass@1 to synchronous RL, staleness 1, 2 and 4",
        unfinished=sum(seeds - len(each) for each in found.values()), gaps=gaps,
        pass_at_1={arm: list(each.values()) for arm, each in found.items()},
    )  # fmt: skip
