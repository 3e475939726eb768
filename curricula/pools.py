"""`pools`: prompts drawn from an easy, a normal and a hard pool in fixed shares."""

from __future__ import annotations

import numpy as np

from curricula.selection import Uniform

POOL_EDGES = (0.2, 0.8)
"""A prompt is hard up to the first, and easy from the second pass rate of its last group."""


class Pools(Uniform):
    """Easy, normal and hard by the rate of the last group, drawn in fixed shares; prompts never drawn are normal.

    The share of a pool that is empty goes to the others.
    """

    sets_each = 3  # normal, easy, hard

    def pick(self, capability: int) -> int | None:
        """As `Uniform.pick`."""
        easy, hard = self.curriculum.easy_pool, self.curriculum.hard_pool
        shares = np.array([1 - easy - hard, easy, hard]).cumsum()
        first = int(np.searchsorted(shares, self._rng.random(), side="right"))
        for number in (first, 0, 1, 2):
            rows = self.sets.sets[capability * self.sets_each + min(number, 2)]
            if rows:
                return self._any(rows)
        return None

    def _bucket(self, rows_N: np.ndarray) -> np.ndarray:
        rate = self.stats.last_P[rows_N] / self.stats.group_size
        pool = np.where(rate <= POOL_EDGES[0], 2, np.where(rate >= POOL_EDGES[1], 1, 0))
        return np.where(self.stats.attempts_P[rows_N] > 0, pool, 0)
