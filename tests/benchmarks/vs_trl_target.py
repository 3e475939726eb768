"""Seconds until the policy is as good as TRL's ends, on the skewed set (`skewed.py`). Target: at most 0.25 of TRL's.

Both train from the same SFT checkpoint with groups of 8, on the same cores, with the same reward. TRL's `GRPOTrainer`
takes prompts uniformly, with the fastest of the settings that `vs_trl.py` tries; ours is the asynchronous loop with the
selection `signal`, from a scan by `posttrain passk` of four samples of each prompt. Prompts of a step and learning
rates are swept first for both, as in `curriculum.py`, with a seed that is not used again: TRL takes those with which it
ends highest, ours those with which it reaches the best of these ends soonest.

Time is that of training, and for ours of the scan: start-up, and for TRL the saving of checkpoints, are left out; so
are evaluations, which are made afterwards, of the checkpoints (pass@1 on held-out prompts). Curves are smoothed as in
`curriculum.py`; a side's seconds are those at which its curve first reaches the end of TRL's of the same seed. `value`
is the median over the seeds; null until all are measured. Ours counts as infinitely long where it does not reach it.

Budget: TRL 7 minutes a run, ours 2; some 12 of each: 110 minutes, in as many sittings as wanted (`--arms`).
"""

from __future__ import annotations

import json
import math
import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray

from judges.scorer import load_scorer
from posttrain import data
from posttrain.cluster import Cluster, run
from posttrain.config import Config, load_config
from posttrain.evaluate import evaluate
from posttrain.progress import say
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from rollouts.renderer import Renderer
from tests.benchmarks.curves import Grid, Setting, evaluated, reached, smoothed, sweep_all
from tests.benchmarks.harness import Bench, Measurement, Options, spread
from tests.benchmarks.skewed import NAME
from tests.benchmarks.start import scan_of, sft_checkpoint
from tests.benchmarks.vs_trl import TRL, drawn

GRID, START = Grid((8, 16, 32)), Setting(16, 1e-4)
"""Of the sweeps."""
SWEEP_SEED = 100
GROUPS = {"trl": 1920, "ours": 1152}
"""That each side trains on."""
SCAN_SAMPLES = 4
CHECKPOINTS = 12
"""Saved and evaluated, beside the one that both start from."""
COMMON = [
    f"reward={NAME}", "data.prompts.limit=1600", "rl.drift_every=0",
    "rl.lr_scheduler_type=constant", "rl.max_rejected_in_a_row=2000", "rl.eval_every=0", "rl.checkpoints_kept=100",
]  # fmt: skip
TRL_SETTING = {"threads": 2, "bf16": False, "batch_size": 32}
"""The fastest here, by `vs_trl.py`."""


class Runs:
    """Runs of both sides, from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to, and whose settings say how many groups and checkpoints there are.
            overrides: of the preset, for every run.
        """
        self._folder, self._overrides, self._bench = bench.runs_folder(), overrides, bench

    @cached_property
    def _start(self) -> str:
        return str(sft_checkpoint(self._bench, self._folder, self._overrides))

    def measure(self, side: str, setting: Setting, seed: int) -> Measurement:
        """One run: its seconds and pass@1 at each checkpoint."""
        groups = self._bench.settings["groups"][side]
        steps, every = evaluated(groups // setting.prompts, self._bench.settings["checkpoints"])
        words = [
            *self._overrides, f"model={self._start}", f"seed={seed}", f"rl.checkpoint_every={every}",
            f"rl.steps={steps}", *setting.overrides(),
        ]  # fmt: skip
        scanned = 0.0
        if side == "ours":
            scan, cost = scan_of(self._folder / f"scan-{seed}.parquet", words, SCAN_SAMPLES)
            words.append(f"rl.start_from_scan={scan}")
            scanned = cost["seconds"]
        config = load_config("tiny", words)
        folder = self._folder / f"{side}-{setting}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        seconds, paths = self._trl(config, folder, steps, every) if side == "trl" else self._ours(config, folder)
        seconds = [scanned + each for each in (0.0, *seconds)]
        found = {"seconds": seconds, "pass@1": self._pass_rates(config, [Path(self._start), *paths])}
        shutil.rmtree(folder)
        return found

    def _trl(self, config: Config, folder: Path, steps: int, every: int) -> tuple[list[float], list[Path]]:
        """Seconds up to each checkpoint, and their directories."""
        folder.mkdir(parents=True)
        prompts = data.prompts(config, "prompts", Renderer(self._start), config.rl.sampling.max_tokens, say)
        rl = config.rl.model_copy(update={"selection": "uniform"})
        with Cluster(config) as cluster:
            actor = cluster.actor(TRL, self._start, config.rl, config.reward)
            order = drawn(prompts, rl, steps, config.seed)
            ends, _ = ray.get(actor.train.remote(order, **TRL_SETTING, save=(str(folder), every)))
        return ends[every - 1 :: every], sorted(folder.glob("step-*"))

    def _ours(self, config: Config, folder: Path) -> tuple[list[float], list[Path]]:
        """As `_trl`."""
        with Cluster(config):
            rundir = RunDir(folder, config)
            train_rl(config, rundir)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends = {line["step"]: line["tokens_generated"] / line["tokens_per_second"] for line in lines}
        paths = rundir.checkpoints("rl")
        return [ends[int(path.name.removeprefix("step-"))] for path in paths], paths

    def _pass_rates(self, config: Config, checkpoints: list[Path]) -> list[float]:
        """Held-out pass@1 of each checkpoint; the same samples' seeds for all."""
        config = config.model_copy(update={"seed": 0})
        renderer, scorer = Renderer(self._start), load_scorer(config.reward)
        prompts = data.prompts(config, "heldout", renderer, config.eval.max_tokens, say)[: config.rl.eval_prompts]
        rates = []
        with self._bench.timed("evaluation"), Cluster(config) as cluster:
            for checkpoint in checkpoints:
                pool = cluster.pool(str(checkpoint))
                report = run(evaluate(pool, renderer, prompts, scorer, config, temperatures=()))
                rates.append(round(report.pass_at_1, 5))
        return rates


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    seeds, grid = (1, Grid((START.prompts,), (START.learning_rate,))) if options.quick else (5, GRID)
    overrides = [*COMMON, "rl.eval_prompts=480", "eval.samples=2", "eval.pass_k=[1]", "eval.temperatures=[1.0]"]
    if options.quick:
        overrides += ["prune.enabled=false", "data.demonstrations.limit=64", "rl.eval_prompts=8", "rl.group_size=4"]
        overrides += ["rl.quotas=null", "data.prompts.limit=200"]
    settings = {
        "preset": "tiny", "overrides": overrides, "seeds": seeds, "trl": TRL_SETTING, "scan": SCAN_SAMPLES,
        "grid": grid._asdict(), "start": str(START),
        "groups": dict.fromkeys(GROUPS, 32) if options.quick else GROUPS,
        "checkpoints": 2 if options.quick else CHECKPOINTS,
    }  # fmt: skip
    folder = Path(__file__).parent
    sources = tuple(folder / f"{name}.py" for name in ("vs_trl_target", "vs_trl", "curves", "skewed", "start"))
    bench = Bench("vs_trl_target", options, settings, sources)
    runs = Runs(bench, overrides)
    ratios: list[float] = []
    needed: dict[str, list[float | None]] = {side: [] for side in GROUPS}

    def measure(side: str, setting: Setting) -> Measurement | None:
        return bench.measure(f"{side}/{setting}", SWEEP_SEED, partial(runs.measure, side, setting))

    sweeps = sweep_all(tuple(GROUPS), grid, START, measure, "seconds")
    if len(sweeps) == len(GROUPS):
        work = {f"{side}/{swept.best}": partial(runs.measure, side, swept.best) for side, swept in sweeps.items()}
        trl, ours = bench.interleave(work, seeds).values()
        for one, other in zip(trl, ours, strict=False):
            goal = smoothed(one["pass@1"])[-1]
            theirs = reached(one["seconds"], smoothed(one["pass@1"]), goal)
            mine = reached(other["seconds"], smoothed(other["pass@1"]), goal)
            needed["trl"].append(theirs)
            needed["ours"].append(mine)
            ratios.append(math.inf if mine is None else mine / (theirs or 1.0))
    return bench.line(
        spread(ratios)["median"] if len(ratios) == seeds else None, 0.25, "at most",
        unit="seconds to the end of TRL's curve, ours over TRL's", by_seed=ratios, seconds_needed=needed,
        sweep={side: swept.as_json() for side, swept in sweeps.items()},
    )  # fmt: skip
