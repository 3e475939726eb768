"""Whether the statistics know what they do not know, on simulated prompts whose pass rates drift in four fixed ways.

For each family of drift, over several seeds: the share of draws in which the prompt's true pass rate lies in the 90 %
interval that was believed just before (wanted: 0.85 to 0.95), and the log loss of the predicted number of solved
rollouts in the group (wanted: less than that of the last group's rate).

The last group's rate is smoothed so that its log loss is finite: `(solved + s) / (G + 2 s)`, with the s of 0.5, 1 and 2
that is best for it in each family. It knows nothing of a prompt never drawn, so the log loss is over prompts drawn
before; the coverage is over all. The families were fixed before anything was tuned on them.

Budget: a minute on one core.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from curricula.stats import StatsTable
from rollouts.types import Prompt
from tests.benchmarks.harness import Bench, Measurement, Options, column, spreads

GROUP = 8
MASS = 0.9
SMOOTHING = (0.5, 1.0, 2.0)

Drift = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
"""`(rng, logits[P] at the start, versions V) -> logits[V, P]`."""


def steady(rng: np.random.Generator, logits_P: np.ndarray, versions: int) -> np.ndarray:
    """Nothing is learnt."""
    return np.repeat(logits_P[None], versions, axis=0)


def sigmoidal(rng: np.random.Generator, logits_P: np.ndarray, versions: int) -> np.ndarray:
    """Each prompt is learnt within some tens of versions, some sooner, some later."""
    return logits_P + 4 * _step(rng, logits_P, versions, 0.2, 0.8, width=10)


def sudden(rng: np.random.Generator, logits_P: np.ndarray, versions: int) -> np.ndarray:
    """Half of the prompts are learnt from one version to the next, each at its own."""
    learnt = rng.random(len(logits_P)) < 0.5
    return logits_P + 4 * learnt * _step(rng, logits_P, versions, 0.0, 1.0, width=0.01)


def forgetting(rng: np.random.Generator, logits_P: np.ndarray, versions: int) -> np.ndarray:
    """Each prompt is learnt, and later forgotten to below where it started."""
    rise = 3 * _step(rng, logits_P, versions, 0.1, 0.4, width=10)
    return logits_P + rise - 4 * _step(rng, logits_P, versions, 0.6, 0.9, width=15)


FAMILIES: dict[str, Drift] = {
    "steady": steady, "sigmoidal": sigmoidal, "sudden": sudden, "forgetting": forgetting,
}  # fmt: skip


def _step(
    rng: np.random.Generator, logits_P: np.ndarray, versions: int, low: float, high: float, width: float
) -> np.ndarray:
    """From 0 to 1 around a version of each prompt's own, between two shares of the run: [V, P]."""
    middle_P = rng.uniform(low * versions, high * versions, len(logits_P))
    return 0.5 + 0.5 * np.tanh((np.arange(versions)[:, None] - middle_P) / (2 * width))


def simulate(
    family: str, seed: int, *, prompts: int = 400, versions: int = 250, groups: int = 24, warm_up: int = 25
) -> Measurement:
    """One run of uniform draws; `groups` are drawn at each version.

    Half of the prompts are of a kind that is nearly all or nothing, half of one in which all are much alike.
    """
    rng = np.random.default_rng(seed)
    kinds = ["broad" if row % 2 else "even" for row in range(prompts)]
    start = [rng.normal(0, 2.5) if kind == "broad" else rng.normal(-0.5, 0.5) for kind in kinds]
    rates_VP = 1 / (1 + np.exp(-FAMILIES[family](rng, np.array(start), versions)))
    table = StatsTable([Prompt(str(row), (), source=kind) for row, kind in enumerate(kinds)], GROUP)
    last = np.full(prompts, -1)
    covered, widths, losses = [], [], []
    baseline: dict[float, list[float]] = {smoothing: [] for smoothing in SMOOTHING}
    for version in range(versions):
        rows = rng.choice(prompts, groups, replace=False)
        judged = []
        believed = zip(rows.tolist(), *table.interval(rows, version, MASS), table.predict(rows, version), strict=True)
        for row, lowest, highest, chances in believed:
            rate = rates_VP[version, row]
            solved = int(rng.binomial(GROUP, rate))
            if version >= warm_up:
                covered.append(bool(lowest <= rate <= highest))
                widths.append(float(highest - lowest))
                if last[row] >= 0:
                    losses.append(-math.log(chances[solved]))
                    for smoothing, found in baseline.items():
                        found.append(_loss((last[row] + smoothing) / (GROUP + 2 * smoothing), solved))
            last[row] = solved
            judged.append((row, [index < solved for index in range(GROUP)], version))
        table.observe(judged)
    return {
        "coverage": statistics.fmean(covered), "width": statistics.fmean(widths), "log_loss": statistics.fmean(losses),
        "log_loss_of_last_group": min(statistics.fmean(found) for found in baseline.values()),
    }  # fmt: skip


def _loss(rate: float, solved: int) -> float:
    """Negative log-probability of so many solved in a group, in nats."""
    return -math.log(math.comb(GROUP, solved) * rate**solved * (1 - rate) ** (GROUP - solved))


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line. The value is how far the worst family's coverage, by its median, is from 0.9."""
    settings = {"group_size": GROUP, "repetitions": 1 if options.quick else 5, "quick": options.quick}
    bench = Bench("calibration", options, settings, (Path(__file__),))
    size = {"prompts": 40, "versions": 30, "groups": 8, "warm_up": 5} if options.quick else {}
    arms = {name: (lambda seed, name=name: simulate(name, seed, **size)) for name in FAMILIES}
    measured = bench.interleave(arms, settings["repetitions"])
    coverage = {name: statistics.median(column(found, "coverage")) for name, found in measured.items()}
    beaten = {
        name: all(each["log_loss"] < each["log_loss_of_last_group"] for each in found)
        for name, found in measured.items()
    }
    line = bench.line(
        max(abs(share - MASS) for share in coverage.values()), 0.05, "at most",
        unit="distance of the 90 % intervals' coverage from 0.9, worst family", coverage=spreads(measured, "coverage"),
        log_loss=spreads(measured, "log_loss"), log_loss_of_last_group=spreads(measured, "log_loss_of_last_group"),
        width=spreads(measured, "width"), beats_last_group=beaten,
    )  # fmt: skip
    line["holds"] = line["holds"] and all(beaten.values())
    return line
