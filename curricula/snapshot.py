"""What the curriculum looks like after a train step: where pass rates lie, what moved, what was drawn and trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curricula.buckets import BUCKETS, bucket_index
from curricula.sampler import PromptSampler
from curricula.signal import Signal
from curricula.stats import StatsTable

UNSEEN = "unseen"
BINS = 10


@dataclass(frozen=True)
class CurriculumSnapshot:
    """The curriculum after one train step; counts of groups are of that step alone.

    Example: `CurriculumSnapshot(7, [0, 2, …], {"hard": 2, …}, {"hard>medium": 1}, None, {"math": 4}, {"math": 4}, 6, 4,
    0.4)`: one prompt was hard before and is medium now, and of 6 groups that were judged 4 had mixed outcomes.
    """

    version: int
    histogram: list[int]  # [BINS] prompts seen, by the posterior mean of their pass rate, from 0 to 1
    buckets: dict[str, int]  # prompts, by bucket; `unseen` is one
    moved: dict[str, int]  # prompts that changed their bucket since the snapshot before: `hard>medium`
    band: tuple[float, float] | None  # pass rates that were aimed at, where there is such a band
    asked: dict[str, int]  # groups of a batch that each capability is to have
    trained: dict[str, int]  # groups of this batch, by capability
    drawn: int  # groups judged since the snapshot before
    mixed: int  # those among them with mixed outcomes
    solve_rate: float | None  # mean share of their rollouts that solve; None where there are none


class Snapshots:
    """Takes one snapshot after another of a sampler, so that each knows what moved since the one before."""

    def __init__(self, sampler: PromptSampler) -> None:
        """What moves is told from how the sampler stands now."""
        self._sampler = sampler
        self._before_P = _buckets(sampler)  # nothing is entered for it: a resumed run draws as if it had not ended

    def take(
        self,
        version: int,
        asked: Mapping[str, int],
        trained: Mapping[str, int],
        drawn: int,
        mixed: int,
        solve_rate: float | None,
    ) -> CurriculumSnapshot:
        """The snapshot after a train step; arguments are the fields that the sampler does not know."""
        stats = self._sampler.stats  # enters what has finished
        now_P, names = _buckets(self._sampler), (UNSEEN, *BUCKETS)
        changed_N = np.flatnonzero(now_P != self._before_P)
        pairs = zip(self._before_P[changed_N].tolist(), now_P[changed_N].tolist(), strict=True)
        moved = Counter(f"{names[old]}>{names[new]}" for old, new in pairs)
        self._before_P = now_P
        counts = np.bincount(now_P, minlength=len(names)).tolist()
        return CurriculumSnapshot(
            version=version,
            histogram=_histogram(stats, version),
            buckets=dict(zip(names, counts, strict=True)),
            moved=dict(sorted(moved.items())),
            band=_band(self._sampler, version),
            asked=dict(asked),
            trained=dict(trained),
            drawn=drawn,
            mixed=mixed,
            solve_rate=solve_rate,
        )


def _histogram(stats: StatsTable, version: int) -> list[int]:
    alpha_N, beta_N = stats.posterior(np.flatnonzero(stats.attempts_P), version)
    counts, _ = np.histogram(alpha_N / (alpha_N + beta_N), BINS, (0.0, 1.0))
    found: list[int] = counts.tolist()
    return found


def _buckets(sampler: PromptSampler) -> np.ndarray[Any, Any]:
    """[P] places in (UNSEEN, *BUCKETS): where the selection keeps prompts, or by the share of their last group."""
    stats = sampler.entered
    if isinstance(sampler.selection, Signal):
        return sampler.selection.bucket_P.copy()
    rate_P = stats.last_P / stats.group_size
    return np.where(stats.attempts_P > 0, 1 + bucket_index(rate_P), 0).astype(np.int8)


def _band(sampler: PromptSampler, version: int) -> tuple[float, float] | None:
    """Pass rates that the selection aims at."""
    return sampler.selection.curriculum.band(version) if isinstance(sampler.selection, Signal) else None
