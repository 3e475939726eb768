"""Which share of the drawn groups has mixed outcomes, on simulated prompts; target: at least 0.7 for `signal`.

Two sets of 2000 prompts. The skewed one is what real sets look like: 60 % solved, 30 % unsolvable, 10 % useful. In the
broad one pass rates are of all sizes. A third is skewed as well and so large, 20,000, that a run of 9,600 groups can
not see all of it. In all the policy gets better while it trains: every pass rate rises by one and a half in the logit
over the run. Counted after a fifth of the run, the warm-up. Beside it: how many groups each selection draws for one
that is mixed, over the whole run, and the pass rate of the mixed ones early and late.

Budget: a minute on one core.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from curricula.curriculum import Curriculum
from curricula.sampler import PromptSampler
from rollouts.types import Prompt
from tests.benchmarks.harness import Bench, Measurement, Options, column, spreads

GROUP = 8
ARMS = ("uniform", "dynamic_sampling", "pools", "signal")
SETS = {"skewed": 2000, "broad": 2000, "large": 20_000}
"""Set → its prompts."""


def pass_rates(name: str, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """The logits of the pass rates at the start: [P]."""
    if name == "broad":
        return rng.normal(-0.5, 2.0, prompts)
    solved, unsolvable = int(0.6 * prompts), int(0.3 * prompts)
    useful = rng.uniform(-2.0, 1.0, prompts - solved - unsolvable)
    logits = np.concatenate((rng.normal(7, 1, solved), rng.normal(-8, 1, unsolvable), useful))
    return rng.permutation(logits)


def simulate(
    selection: str, name: str, seed: int, *, prompts: int, versions: int = 150, groups: int = 64
) -> Measurement:
    """One run; `groups` are drawn at each version, and seen by the sampler when all of them are drawn."""
    rng = np.random.default_rng(seed)
    logits = pass_rates(name, prompts, rng)
    rows = [Prompt(str(row), (), "math") for row in range(prompts)]
    sampler = PromptSampler(rows, selection, GROUP, seed, Curriculum(steps=versions))
    mixed, rates, drawn = [], [], set()
    for version in range(versions):
        rate_P = 1 / (1 + np.exp(-(logits + 1.5 * version / versions)))
        batch = [sampler.draw("math", version) for _ in range(groups)]
        for row in batch:
            outcomes = (rng.random(GROUP) < rate_P[row]).tolist()
            mixed.append(0 < sum(outcomes) < GROUP)
            rates.append(rate_P[row])
            sampler.observe(row, outcomes, version)
        drawn.update(batch)
    count, taught = len(mixed), np.array(mixed)
    early, late = np.split(np.where(taught, rates, np.nan)[count // 5 :], 2)
    return {
        "mixed": statistics.fmean(mixed[count // 5 :]), "draws_per_mixed": count / sum(mixed), "prompts": len(drawn),
        "rate_early": float(np.nanmean(early)), "rate_late": float(np.nanmean(late)),
    }  # fmt: skip


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line. The value is `signal`'s share on the set where it is less, by the median."""
    settings = {"group_size": GROUP, "repetitions": 1 if options.quick else 5, "quick": options.quick}
    bench = Bench("selection", options, settings, (Path(__file__),))
    size = {"versions": 10, "groups": 16} if options.quick else {}
    sets = {name: prompts // 10 if options.quick else prompts for name, prompts in SETS.items()}
    arms = {
        f"{name}/{arm}": partial(simulate, arm, name, prompts=prompts, **size)
        for name, prompts in sets.items()
        for arm in ARMS
    }
    measured = bench.interleave(arms, settings["repetitions"])
    value = min(statistics.median(column(measured[f"{name}/signal"], "mixed")) for name in SETS)
    return bench.line(
        value, 0.7, "at least", unit="share of the drawn groups with mixed outcomes",
        **{key: spreads(measured, key) for key in ("mixed", "draws_per_mixed", "prompts", "rate_early", "rate_late")},
    )  # fmt: skip
