"""How many tokens have to be generated until the policy is as good as `uniform` ends, by each selection of prompts.

On a skewed set (`skewed.py`) and on the tiny world as it is, all arms from one SFT checkpoint at a constant learning
rate, pass@1 on held-out prompts evaluated a dozen times in a run, at about equal distances in tokens. A curve is
smoothed by the mean of up to five neighbouring evaluations; its tokens are those at which it first reaches the end of
`uniform`'s curve of the same seed. Where it does not within its steps, another arm counts with the tokens that it has,
which is too few, and `signal` with infinitely many.

Each arm's learning rate is swept first, with a seed that is not used again. `uniform` takes the one with which it ends
highest, each other arm the one with which it reaches the best of these ends with the fewest tokens.

Targets for `signal`, by the median over five seeds: on the skewed set at most 0.4 of `uniform`, 0.45 of
`dynamic_sampling` and 0.8 of `pools`; on the tiny world at most 1.0 of the best of them; and at least 0.7 of its drawn
groups have mixed outcomes after a fifth of the run, on both. `value` is the largest of these figures over their targets
(of the share: its target over it), so that at most 1 holds all; null until all arms are measured.

Arms are kept as they finish, so that the whole may be run over several sittings: `--arms 10` measures at most ten more.

Budget: two to seven minutes an arm on two cores, 68 arms: three hours; the SFT checkpoint first, 2 minutes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.cluster import Cluster
from posttrain.config import load_config
from posttrain.curriculum_log import NAME, read_snapshots
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from tests.benchmarks import skewed
from tests.benchmarks.curves import best_rates, reached, smoothed
from tests.benchmarks.harness import Bench, Measurement, Options, source_hash, spread
from tests.benchmarks.start import sft_checkpoint

ARMS = ("uniform", "signal", "pools", "dynamic_sampling")
LEARNING_RATES = {"skewed": (5e-5, 1e-4, 2e-4, 4e-4), "tiny": (1e-4, 2e-4, 4e-4)}
SWEEP_SEED = 100
EVALUATIONS = 12
STEPS = {
    "skewed": {"uniform": 240, "dynamic_sampling": 32, "pools": 80, "signal": 72},
    "tiny": dict.fromkeys(ARMS, 60),
}
"""Train steps of each arm."""
TARGETS = {"uniform": 0.4, "dynamic_sampling": 0.45, "pools": 0.8}
"""Most of an arm's tokens that `signal` may need on the skewed set."""
MIXED = 0.7
COMMON = [
    "rl.lr_scheduler_type=constant", "rl.drift_every=0", "rl.max_rejected_in_a_row=2000", "rl.eval_prompts=480",
]  # fmt: skip
OF_WORLD = {
    "skewed": [f"reward={skewed.NAME}", "data.prompts.limit=1600"],
    "tiny": [],
}  # fmt: skip
QUICK = [
    "prune.enabled=false", "data.demonstrations.limit=64", "rl.prompts_per_step=3", "rl.quotas=null",
    "rl.group_size=4", "rl.eval_prompts=8",
]  # fmt: skip


class Runs:
    """RL runs on a world with a selection, from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str], steps: Mapping[str, Mapping[str, int]]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
            steps: of each world and arm.
        """
        kind = "quick" if bench.options.quick else source_hash(*bench.sources)
        self._folder, self._overrides, self._bench = bench.options.folder / f"curriculum-{kind}", overrides, bench
        self._steps = steps
        if bench.options.quick or bench.options.fresh:
            shutil.rmtree(self._folder, ignore_errors=True)

    def measure(self, world: str, arm: str, learning_rate: float, seed: int) -> Measurement:
        """One run: its tokens and pass@1 at each evaluation."""
        checkpoint, steps = sft_checkpoint(self._bench, self._folder, self._overrides), self._steps[world][arm]
        words = [
            *OF_WORLD[world], *self._overrides, f"model={checkpoint}", f"seed={seed}", f"rl.selection={arm}",
            f"rl.learning_rate={learning_rate}", f"rl.steps={steps}", f"rl.checkpoint_every={steps}",
            f"rl.eval_every={math.ceil(steps / EVALUATIONS)}",
        ]  # fmt: skip
        config = load_config("tiny", words)
        folder = self._folder / f"{world}-{arm}-{learning_rate:g}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        with Cluster(config):
            rundir = RunDir(folder, config)
            train_rl(config, rundir)
        found = measured(rundir)
        shutil.rmtree(folder)
        return found


def measured(rundir: RunDir) -> Measurement:
    """The curve of a finished run, and the share of its drawn groups with mixed outcomes after a fifth of it."""
    lines = [json.loads(line) for line in (rundir.path / "metrics.jsonl").read_text().splitlines()]
    tokens = {0: 0} | {line["step"]: int(line["tokens_generated"]) for line in lines if "tokens_generated" in line}
    rates = {line["step"]: line["eval/pass@1"] for line in lines if "eval/pass@1" in line}
    snapshots = read_snapshots(rundir.path / "rl" / NAME)
    counted = [each for each in snapshots if each.version > len(snapshots) / 5]
    summary = json.loads((rundir.path / "rl" / "summary.json").read_text())
    return {
        "tokens": [tokens[step] for step in sorted(rates)],
        "pass@1": [round(rates[step], 5) for step in sorted(rates)],
        "mixed": sum(each.mixed for each in counted) / sum(each.drawn for each in counted),
        "drawn": sum(each.drawn for each in snapshots), "seconds": summary["seconds"],
    }  # fmt: skip


def compared(runs: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """What `signal` needs of each other arm's tokens, seed by seed."""
    needed: dict[str, list[float | None]] = {arm: [] for arm in runs}
    ratios: dict[str, list[float]] = {arm: [] for arm in runs if arm != "signal"}
    for seed in range(min(map(len, runs.values()))):
        goal = smoothed(runs["uniform"][seed]["pass@1"])[-1]
        for arm, found in runs.items():
            needed[arm].append(reached(found[seed]["tokens"], smoothed(found[seed]["pass@1"]), goal))
        ours = needed["signal"][-1]
        for arm, values in ratios.items():
            theirs = needed[arm][-1]
            theirs = runs[arm][seed]["tokens"][-1] if theirs is None else max(theirs, 1)
            values.append(math.inf if ours is None else ours / theirs)
    return {
        "ratio": {arm: spread(values) for arm, values in ratios.items() if values}, "ratios": ratios, "tokens": needed,
        "ends": {arm: [smoothed(each["pass@1"])[-1] for each in found] for arm, found in runs.items()},
        "mixed": {arm: spread(each["mixed"] for each in found) for arm, found in runs.items() if found},
    }  # fmt: skip


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    seeds, learning_rates = (1, dict.fromkeys(STEPS, (3e-4,))) if options.quick else (5, LEARNING_RATES)
    steps = {world: dict.fromkeys(ARMS, 2) for world in STEPS} if options.quick else STEPS
    overrides = COMMON + (QUICK if options.quick else [])
    settings = {
        "preset": "tiny", "overrides": overrides, "worlds": OF_WORLD, "steps": steps, "seeds": seeds,
        "learning_rates": learning_rates,
    }  # fmt: skip
    folder = Path(__file__).parent
    sources = tuple(folder / name for name in ("curriculum.py", "curves.py", "skewed.py", "start.py"))
    bench = Bench("curriculum", options, settings, sources)
    runs = Runs(bench, overrides, steps)
    worlds: dict[str, dict[str, Any]] = {}
    for world in STEPS:
        swept = {
            arm: {
                rate: bench.measure(f"{world}/{arm}/{rate:g}", SWEEP_SEED, partial(runs.measure, world, arm, rate))
                for rate in learning_rates[world]
            }
            for arm in ARMS
        }
        if any(found is None for each in swept.values() for found in each.values()):
            break
        best = best_rates(swept, "uniform", "tokens")  # type: ignore[arg-type]
        found = bench.interleave(
            {f"{world}/{arm}/{rate:g}": partial(runs.measure, world, arm, rate) for arm, rate in best.items()}, seeds
        )
        worlds[world] = {
            "learning_rates": best, **compared({arm: found[f"{world}/{arm}/{rate:g}"] for arm, rate in best.items()}),
            "sweep": {arm: {f"{rate:g}": each for rate, each in rates.items()} for arm, rates in swept.items()},
        }  # fmt: skip
    value = max(_of_targets(worlds).values()) if _complete(worlds, seeds) else None
    return bench.line(
        value, 1.0, "at most", unit="largest ratio of a figure to its target", of_targets=_of_targets(worlds),
        worlds=worlds,
    )  # fmt: skip


def _complete(worlds: Mapping[str, Any], seeds: int) -> bool:
    return len(worlds) == len(STEPS) and all(
        len(values) == seeds for world in worlds.values() for values in world["ratios"].values()
    )


def _of_targets(worlds: Mapping[str, Any]) -> dict[str, float]:
    """Each figure over its target (the other way round for a share, which is to be at least so much)."""
    found: dict[str, float] = {}
    for world, values in worlds.items():
        medians = {arm: each["median"] for arm, each in values["ratio"].items()}
        if world == "skewed":
            found |= {f"skewed/{arm}": medians[arm] / target for arm, target in TARGETS.items() if arm in medians}
        elif medians:
            found["tiny/best"] = max(medians.values())
        if "signal" in values["mixed"]:
            found[f"{world}/mixed"] = MIXED / values["mixed"]["signal"]["median"]
    return found
