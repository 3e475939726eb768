"""`pools`: prompts drawn from an easy, a normal and a hard pool in fixed shares."""

from __future__ import annotations

import numpy as np

from curricula.selection import Uniform

POOL_EDGES = (0.2, 0.8)
"""A prompt is hard up to the first, and easy from the second pass rate of its last group."""


class Pools(Uniform):
    """Easy, normal and hard by the rate of the last group, drawn in fixed shares; prompts never drawn are normal.

    The share of a pool that is empty goes to the others, in proportion to theirs.
    """

    sets_each = 3  # normal, easy, hard

    def pick(self, capability: int) -> int | None:
        """As `Uniform.pick`."""
        easy, hard = self.curriculum.easy_pool, self.curriculum.hard_pool
        sets = self.sets.sets[capability * self.sets_each : (capability + 1) * self.sets_each]
        shares = np.where([bool(rows) for rows in sets], (max(1 - easy - hard, 0), easy, hard), 0)
        if shares.any():
            return self._any(sets[self._rng.choice(len(sets), p=shares / shares.sum())])
        return next((self._any(rows) for rows in sets if rows), None)  # in pools of which no share is wanted

    def _bucket(self, rows_N: np.ndarray) -> np.ndarray:
        rate = self.stats.last_P[rows_N] / self.stats.group_size
        pool = np.where(rate <= POOL_EDGES[0], 2, np.where(rate >= POOL_EDGES[1], 1, 0))
        return np.where(self.stats.attempts_P[rows_N] > 0, pool, 0)
