"""`signal`: prompts drawn by how likely their groups are to teach, along a band of pass rates that gets harder."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from curricula.buckets import EASY_FROM, HARD_BELOW
from curricula.curriculum import Curriculum
from curricula.row_sets import NONE
from curricula.selection import Uniform, together
from curricula.stats import StatsTable

CANDIDATES = 6
"""Prompts of the chosen bucket among which one draw chooses."""
DRAWS = 4
"""Pass rates drawn for each candidate. One alone lets those win that least is known of, where there are many."""
UNSEEN_CANDIDATES = 2
"""Prompts never drawn that compete with the best of them."""
UNSEEN_DRAWS = 32
"""Pass rates drawn for each of those. With few, the best of a set of mostly useless prompts looks good by luck."""
LUCKY_CANDIDATES = 8
"""Prompts never drawn that compete early in the run, by one pass rate each: by luck."""
STILL_WORTH = 0.25
"""Against prompts never drawn, others are worth at least so much of a new one, however many groups they had. Without
this, a set of mostly useless prompts is searched to its end for the few that are left."""
SOFTNESS = 0.1
"""How far outside of the band a pass rate's value falls to exp(-1)."""
RETIRE, RETURN = 0.35, 0.5
"""A prompt is retired when the chance of a mixed group is below the first, and returns above the second."""
EDGES = (HARD_BELOW, EASY_FROM)
"""Pass rates between hard, medium and easy."""
MARGIN = 0.05
"""How far past an edge the expected pass rate has to be for a prompt to leave its bucket."""
LONGEST = 4
"""How often the time to the next re-test is doubled at most."""
UNSEEN, UNSOLVED, HARD, MEDIUM, EASY, SOLVED = range(6)
"""The buckets: where a prompt stands with the policy."""
ACTIVE = (HARD, MEDIUM, EASY)
RETIRED = (UNSOLVED, SOLVED)
DUE = 6
"""The set of retired prompts whose re-test is due; they keep their bucket."""


class Signal(Uniform):
    """By the expected learning signal: the chance that a group of G has mixed outcomes, `1 - p^G - (1-p)^G`.

    A draw picks a bucket, by how much of it lies in the band of pass rates that the run aims at, and takes a few
    candidates from it and a few that were never drawn. For each a few pass rates p are drawn from its posterior
    (Thompson sampling), and the one with the highest mean signal, less the further p is outside of the band, wins. So
    prompts never drawn are explored as far as others of their kind give hope, and early in the run also on luck, since
    what is found then pays for longest. Groups that a prompt had count against it: one more of them teaches less than
    one of a new prompt that is as likely to be mixed. Fixed shares of the draws go to easy prompts, against forgetting
    and growing length, and to retired ones that are due. Each re-test that changes nothing doubles the time to the next
    one.
    """

    sets_each = DUE + 1

    def __init__(self, stats: StatsTable, curriculum: Curriculum, rng: np.random.Generator) -> None:
        """Puts every prompt where it belongs before its first group."""
        super().__init__(stats, curriculum, rng)
        count = len(stats.kind_P)
        self.bucket_P = np.zeros(count, dtype=np.int8)
        self.due_P = np.zeros(count, dtype=np.int32)  # the version from which a retired prompt is tested again
        self.confirmed_P = np.zeros(count, dtype=np.int8)  # re-tests in a row that changed nothing
        self._calendar: defaultdict[int, list[int]] = defaultdict(list)
        self._chosen: list[list[int]] = [[] for _ in stats.capabilities]
        self._ahead = min(together(count), 64)  # more would be chosen in vain: they are forgotten with a version

    def advance(self, version: int) -> None:
        """As `Uniform.advance`: makes retired prompts due whose time has come, and forgets what was chosen ahead."""
        super().advance(version)
        for chosen in self._chosen:
            chosen.clear()
        for due in sorted(due for due in self._calendar if due <= version):
            rows_N = np.array(sorted(self._calendar.pop(due)))  # sorted, as they are in a restored calendar
            still = rows_N[self.due_P[rows_N] == due].tolist()  # some were drawn before, for want of others
            self.put([row for row in still if self.sets.set_P[row] != NONE])

    def pick(self, capability: int) -> int | None:
        """As `Uniform.pick`."""
        sets = self.sets.sets[capability * self.sets_each : (capability + 1) * self.sets_each]
        share = self._rng.random()
        if sets[DUE] and share < self.curriculum.retest_share:
            return self._any(sets[DUE])
        if sets[EASY] and 0 <= share - self.curriculum.retest_share < self.curriculum.easy_floor:
            return self._any(sets[EASY])
        chosen = self._chosen[capability]
        while chosen:
            row = chosen.pop()
            if self.sets.set_P[row] != NONE:  # not drawn meanwhile
                return row
        if any(sets[bucket] for bucket in (UNSEEN, *ACTIVE)):
            chosen.extend(self._choose(sets))
            return chosen.pop()
        return next((self._any(sets[number]) for number in (DUE, *RETIRED) if sets[number]), None)

    def observed(self, rows_N: np.ndarray) -> None:
        """Finds the buckets of prompts, with hysteresis, and when retired ones are due."""
        chances_NG = self.stats.predict(rows_N, self.version)
        size = self.stats.group_size
        rate = chances_NG @ np.arange(size + 1) / size
        before = self.bucket_P[rows_N]
        was_retired = (before == UNSOLVED) | (before == SOLVED)
        retired = 1 - chances_NG[:, 0] - chances_NG[:, size] < np.where(was_retired, RETURN, RETIRE)
        # The edges are moved away from a prompt that was somewhere before.
        low, high = (
            edge + MARGIN * np.where(before == UNSEEN, 0, np.where(before < above, 1, -1))
            for edge, above in zip(EDGES, (MEDIUM, EASY), strict=True)
        )
        active = np.where(rate < low, HARD, np.where(rate < high, MEDIUM, EASY))
        bucket = np.where(retired, np.where(rate > 0.5, SOLVED, UNSOLVED), active)
        tested = self._bucket(rows_N) == DUE
        confirmed = np.where(bucket == before, np.minimum(self.confirmed_P[rows_N] + tested, LONGEST), 0)
        due = np.where(retired, self.version + self.curriculum.retest_after * 2 ** confirmed.astype(np.int32), 0)
        self.bucket_P[rows_N], self.confirmed_P[rows_N], self.due_P[rows_N] = bucket, confirmed, due
        for row, version_due in zip(rows_N[retired].tolist(), due[retired].tolist(), strict=True):
            self._calendar[version_due].append(row)

    def replaced(self, rows: Sequence[int]) -> None:
        """As `Uniform.replaced`."""
        self.bucket_P[rows] = self.due_P[rows] = self.confirmed_P[rows] = 0
        super().replaced(rows)

    def columns(self) -> dict[str, np.ndarray]:
        """As `Uniform.columns`."""
        return {
            **super().columns(),
            "bucket": self.bucket_P.copy(), "due": self.due_P.copy(), "confirmed": self.confirmed_P.copy(),
        }  # fmt: skip

    def ahead(self) -> list[int]:
        """As `Uniform.ahead`."""
        return [row for chosen in self._chosen for row in chosen]

    def restore_ahead(self, rows: Sequence[int]) -> None:
        """As `Uniform.restore_ahead`."""
        for row, number in zip(rows, self.stats.capability(np.array(rows, dtype=np.int64)).tolist(), strict=True):
            self._chosen[number].append(row)

    def restore(self, columns: dict[str, np.ndarray], version: int) -> None:
        """As `Uniform.restore`."""
        self.bucket_P, self.due_P, self.confirmed_P = (columns[name] for name in ("bucket", "due", "confirmed"))
        super().restore(columns, version)
        for chosen in self._chosen:
            chosen.clear()
        self._calendar.clear()
        for row in np.flatnonzero(self.due_P > version).tolist():
            self._calendar[int(self.due_P[row])].append(row)

    def _bucket(self, rows_N: np.ndarray) -> np.ndarray:
        bucket, due = self.bucket_P[rows_N], self.due_P[rows_N]
        return np.where((due > 0) & (due <= self.version), DUE, bucket).astype(np.int64)

    def _retired(self, rows_N: np.ndarray) -> np.ndarray:
        return np.isin(self.bucket_P[rows_N], RETIRED)

    def _choose(self, sets: Sequence[array[int]]) -> list[int]:
        """The rows of the next draws, the last one first; there may be repetitions."""
        low, high = self.curriculum.band(self.version)
        rows, values = [], []
        known = [_some(sets[number], (self._ahead, CANDIDATES), self._rng) for number in ACTIVE if sets[number]]
        if known:
            chosen = self._rng.choice(len(known), size=self._ahead, p=self._shares(sets, low, high))
            best, worth = self._best(np.stack(known)[chosen, np.arange(self._ahead)], DRAWS, low, high)
            rows.append(best)
            values.append(worth)
        if sets[UNSEEN]:
            early = self.version < self.curriculum.explore_until * self.curriculum.steps
            candidates, draws = (LUCKY_CANDIDATES, 1) if early else (UNSEEN_CANDIDATES, UNSEEN_DRAWS)
            best, worth = self._best(_some(sets[UNSEEN], (self._ahead, candidates), self._rng), draws, low, high)
            rows.append(best)
            values.append(worth)
        found: list[int] = np.choose(np.argmax(values, axis=0), rows).tolist()
        return found

    def _best(self, rows: np.ndarray, draws: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Of each line of candidates [A, N] the one that is worth most, by the mean over so many pass rates of its
        posterior and by the groups that it had, and what it is worth against prompts never drawn: each [A].
        """
        rates = self.stats.sample(rows.ravel(), self.version, self._rng, draws).reshape(*rows.shape, draws)
        size = self.stats.group_size
        outside = np.maximum(np.maximum(low - rates, rates - high), 0) / SOFTNESS
        values = ((1 - rates**size - (1 - rates) ** size) * np.exp(-(outside**2))).mean(axis=-1)
        discount = (1 + self.stats.attempts_P[rows] / size) ** -self.curriculum.novelty
        best = np.arange(len(rows)), (values * discount).argmax(axis=1)
        return rows[best], (values * np.maximum(discount, STILL_WORTH))[best]

    def _shares(self, sets: Sequence[array[int]], low: float, high: float) -> np.ndarray:
        """Of the active buckets that are not empty: how many of their prompts are probably in the band, as shares.

        Where none are, the bucket next to the band has all.
        """
        filled = [number for number in ACTIVE if sets[number]]
        sizes = np.array([len(sets[number]) for number in filled])
        starts, ends = (np.array([edges[number - HARD] for number in filled]) for edges in ((0, *EDGES), (*EDGES, 1)))
        inside = np.minimum(ends, high) - np.maximum(starts, low)  # negative: how far away
        weights = sizes * np.maximum(inside, 0) / (ends - starts) if inside.max() > 0 else inside == inside.max()
        shares: np.ndarray = weights / weights.sum()
        return shares


def _some(rows: array[int], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rows of a set at random."""
    found: np.ndarray = np.frombuffer(rows, dtype=np.int32)[(rng.random(shape) * len(rows)).astype(np.int64)]
    return found
