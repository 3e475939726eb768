"""How many tokens have to be generated until the policy is as good as `uniform` ends, by each selection of prompts.

On a skewed set (`skewed.py`) and on the tiny world as it is, all arms from one SFT checkpoint at a constant learning
rate, pass@1 on held-out prompts evaluated a dozen times in a run, at about equal distances in tokens. On the skewed set
`signal` starts from a scan by `posttrain passk`, of four samples of each prompt, whose tokens are counted. A curve is
smoothed by the mean of up to five neighbouring evaluations; its tokens are those at which it first reaches the end of
`uniform`'s curve of the same seed. Where it does not within its steps, another arm counts with the tokens that it has,
which is too few, and `signal` with infinitely many.

Each arm's learning rate is swept first, with a seed that is not used again; on the skewed set together with the prompts
of a step, because an arm that is fed mixed groups alone needs fewer of them in a step than one whose groups are mostly
without advantage. From one setting on, the next larger and smaller ones are tried, until none of these is better than
the best one. `uniform` takes the setting with which it ends highest, each other arm the one with which it reaches the
best of these ends with the fewest tokens.

Targets for `signal`, by the median over five seeds: on the skewed set at most 0.4 of `uniform`, 0.45 of
`dynamic_sampling` and 0.8 of `pools`; on the tiny world at most 1.0 of the best of them; and at least 0.7 of its drawn
groups have mixed outcomes after a fifth of the run, on both. `value` is the largest of these figures over their targets
(of the share: its target over it), so that at most 1 holds all; null until all arms are measured.

Arms are kept as they finish, so that the whole may be run over several sittings: `--arms 10` measures at most ten more.

Budget: two to seven minutes an arm on two cores, some 85 arms: four and a half hours; before them SFT, a minute.
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
from tests.benchmarks.curves import Grid, Setting, evaluated, reached, smoothed, sweep_all
from tests.benchmarks.harness import Bench, Measurement, Options, spread
from tests.benchmarks.start import scan_of, sft_checkpoint

ARMS = ("uniform", "signal", "pools", "dynamic_sampling")
GRIDS = {"skewed": Grid((6, 16, 32)), "tiny": Grid((16,))}
START = Setting(16, 1e-4)
"""Of each sweep."""
SWEEP_SEED = 100
EVALUATIONS = 12
GROUPS = {
    "skewed": {"uniform": 3840, "dynamic_sampling": 384, "pools": 1152, "signal": 1152},
    "tiny": dict.fromkeys(ARMS, 960),
}
"""Groups that each arm trains on, about; on the skewed set `uniform` and `dynamic_sampling` draw equally many."""
SCANS = {("skewed", "signal"): 4}
"""World and arm that start from a scan → samples of each prompt."""
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
    "prune.enabled=false", "data.demonstrations.limit=64", "data.prompts.limit=400", "rl.quotas=null",
    "rl.group_size=4", "rl.eval_prompts=8",
]  # fmt: skip


class Runs:
    """RL runs on a world with a selection, from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str], groups: Mapping[str, Mapping[str, int]]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
            groups: that an arm trains on in a world.
        """
        self._folder, self._overrides, self._bench = bench.runs_folder(), overrides, bench
        self._groups = groups

    def measure(self, world: str, arm: str, setting: Setting, seed: int) -> Measurement:
        """One run: its tokens and pass@1 at each evaluation."""
        checkpoint = sft_checkpoint(self._bench, self._folder, self._overrides)
        steps, every = evaluated(self._groups[world][arm] // setting.prompts, EVALUATIONS)
        start = [*OF_WORLD[world], *self._overrides, f"model={checkpoint}", f"seed={seed}"]
        words, scanned = [], 0
        if (world, arm) in SCANS:
            scan, cost = scan_of(self._folder / f"{world}-{seed}.parquet", start, SCANS[world, arm])
            words, scanned = [f"rl.start_from_scan={scan}"], cost["tokens_generated"]
        words += [
            f"rl.selection={arm}", f"rl.steps={steps}", f"rl.checkpoint_every={steps}", f"rl.eval_every={every}",
            *setting.overrides(),
        ]  # fmt: skip
        config = load_config("tiny", [*start, *words])
        folder = self._folder / f"{world}-{arm}-{setting}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        with Cluster(config):
            rundir = RunDir(folder, config)
            train_rl(config, rundir)
        found = measured(rundir, scanned)
        shutil.rmtree(folder)
        return found


def measured(rundir: RunDir, scanned: int) -> Measurement:
    """The curve of a finished run, and the share of its drawn groups with mixed outcomes after a fifth of it; `scanned`
    tokens were generated before.
    """
    lines = [json.loads(line) for line in (rundir.path / "metrics.jsonl").read_text().splitlines()]
    tokens = {0: 0} | {line["step"]: int(line["tokens_generated"]) for line in lines if "tokens_generated" in line}
    rates = {line["step"]: line["eval/pass@1"] for line in lines if "eval/pass@1" in line}
    snapshots = read_snapshots(rundir.path / "rl" / NAME)
    counted = [each for each in snapshots if each.version > len(snapshots) / 5]
    summary = json.loads((rundir.path / "rl" / "summary.json").read_text())
    return {
        "tokens": [scanned + tokens[step] for step in sorted(rates)],
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
    seeds, grids, start, groups = 5, GRIDS, START, GROUPS
    if options.quick:
        seeds, start = 1, Setting(3, 2e-4)
        grids = dict.fromkeys(GRIDS, Grid((3,), (2e-4,)))
        groups = dict.fromkeys(GROUPS, dict.fromkeys(ARMS, 3 * EVALUATIONS))
    overrides = COMMON + (QUICK if options.quick else [])
    ran = {
        "preset": "tiny", "overrides": overrides, "worlds": OF_WORLD, "groups": groups, "seeds": seeds,
        "scans": {f"{world}/{arm}": samples for (world, arm), samples in SCANS.items()},
        "grids": {world: grid._asdict() for world, grid in grids.items()}, "start": str(start),
    }  # fmt: skip
    folder = Path(__file__).parent
    sources = tuple(folder / name for name in ("curriculum.py", "curves.py", "skewed.py", "start.py"))
    bench = Bench("curriculum", options, ran, sources)
    runs = Runs(bench, overrides, groups)
    worlds: dict[str, dict[str, Any]] = {}
    for world, grid in grids.items():

        def measure(arm: str, setting: Setting, world: str = world) -> Measurement | None:
            return bench.measure(f"{world}/{arm}/{setting}", SWEEP_SEED, partial(runs.measure, world, arm, setting))

        sweeps = sweep_all(ARMS, grid, start, measure, "tokens")
        if len(sweeps) < len(ARMS):
            break
        named = {arm: f"{world}/{arm}/{swept.best}" for arm, swept in sweeps.items()}
        work = {named[arm]: partial(runs.measure, world, arm, swept.best) for arm, swept in sweeps.items()}
        found = bench.interleave(work, seeds)
        worlds[world] = {
            **compared({arm: found[name] for arm, name in named.items()}),
            "sweep": {arm: swept.as_json() for arm, swept in sweeps.items()},
        }  # fmt: skip
    value = max(_of_targets(worlds).values()) if _complete(worlds, seeds) else None
    return bench.line(
        value, 1.0, "at most", unit="largest ratio of a figure to its target", of_targets=_of_targets(worlds),
        worlds=worlds,
    )  # fmt: skip


def _complete(worlds: Mapping[str, Any], seeds: int) -> bool:
    return len(worlds) == len(GROUPS) and all(
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
