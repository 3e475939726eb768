"""How the next prompt is chosen: `uniform`, `pools` and `signal`; `dynamic_sampling` draws as `uniform` does.

The prompts of a capability that are not in flight lie in sets, and a draw takes one from a set, so that it costs the
same however many prompts there are.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from curricula.buckets import EASY_FROM, HARD_BELOW
from curricula.curriculum import Curriculum
from curricula.row_sets import NONE, RowSets
from curricula.stats import StatsTable

CANDIDATES = 6
"""Prompts of the chosen bucket among which one draw chooses."""
UNSEEN_CANDIDATES = 2
"""Prompts never drawn that compete with them."""
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
FRESH = 8
"""One part in so many of a window is kept unseen: prompts that were seen make room for the stream's next ones."""
POOL_EDGES = (0.2, 0.8)
"""`pools`: a prompt is hard up to the first, and easy from the second pass rate of its last group."""


UNSEEN, UNSOLVED, HARD, MEDIUM, EASY, SOLVED = range(6)
"""The buckets: where a prompt stands with the policy."""
ACTIVE = (HARD, MEDIUM, EASY)
RETIRED = (UNSOLVED, SOLVED)
DUE = 6
"""The set of retired prompts whose re-test is due; they keep their bucket."""


def together(prompts: int) -> int:
    """How many draws are chosen, or entered into the statistics, at a time.

    One in a small set, where each group matters to the next draw. In a large one it does not, and many cost little more
    than one.
    """
    return min(max(prompts // 256, 1), 256)


class Uniform:
    """Every prompt alike. P = prompts, N = those of a call."""

    sets_each = 1
    """Sets of each capability."""

    def __init__(self, stats: StatsTable, curriculum: Curriculum, rng: np.random.Generator) -> None:
        """Puts every prompt where it belongs before its first group."""
        self.stats, self.curriculum, self.version, self._rng = stats, curriculum, 0, rng
        self.sets = RowSets(len(stats.kind_P), self.sets_each * len(stats.capabilities))
        capability_P = stats.capability(np.arange(len(stats.kind_P)))
        self.sets.fill(capability_P * self.sets_each, np.arange(len(capability_P)))

    def advance(self, version: int) -> None:
        """The generators hold a newer policy."""
        self.version = version

    def pick(self, capability: int) -> int | None:
        """The row of a prompt of a capability that is not in flight, None if there is none."""
        rows = self.sets.sets[capability]
        return self._any(rows) if rows else None

    def observed(self, rows_N: np.ndarray) -> None:
        """The statistics know of new groups of these prompts."""

    def put(self, rows: Sequence[int]) -> None:
        """Prompts are not in flight any more."""
        rows_N = np.array(rows, dtype=np.int64)
        sets = self.stats.capability(rows_N) * self.sets_each + self._bucket(rows_N)
        for row, number in zip(rows, sets.tolist(), strict=True):
            self.sets.move(row, number)

    def leaving(self, rows_N: np.ndarray) -> list[int]:
        """Which prompts of a window make room for the next ones of the stream, now that draws of these have ended.

        As many as it takes for enough of each capability to be unseen; first those that are not worth drawing, then
        those that were seen longest ago. None that is in flight.
        """
        leaving: list[int] = []
        for capability in np.unique(self.stats.capability(rows_N)).tolist():
            sets = self.sets.sets[capability * self.sets_each : (capability + 1) * self.sets_each]
            rows_M = np.concatenate([np.array(rows, dtype=np.int64) for rows in sets])
            seen_M = rows_M[self.stats.attempts_P[rows_M] > 0]
            size = np.count_nonzero(self.stats.capability(np.arange(len(self.stats.kind_P))) == capability)
            missing = -(-size // FRESH) - (len(rows_M) - len(seen_M))
            order = np.lexsort((self.stats.version_P[seen_M], ~self._retired(seen_M)))
            leaving += seen_M[order[: max(missing, 0)]].tolist()
        return leaving

    def replaced(self, rows: Sequence[int]) -> None:
        """Other prompts are in these rows, which were never drawn."""
        self.put(rows)

    def columns(self) -> dict[str, np.ndarray]:
        """Copies of what is to be saved of each prompt, by name: each [P]."""
        return {"set": np.array(self.sets.set_P), "place": np.array(self.sets.place_P)}

    def restore(self, columns: dict[str, np.ndarray], version: int) -> None:
        """Takes back what `columns` gave at a version. Prompts that were in flight are put where they belong."""
        self.version = version
        waiting = columns["set"] != NONE
        bucket_P = columns["set"] % self.sets_each
        set_P = (
            self.stats.capability(np.arange(len(waiting))) * self.sets_each + bucket_P
        )  # capabilities may have moved
        self.sets.fill(np.where(waiting, set_P, NONE), columns["place"])
        self.put(np.flatnonzero(~waiting).tolist())

    def _bucket(self, rows_N: np.ndarray) -> np.ndarray:
        """The set of each prompt within those of its capability: [N]."""
        return np.zeros(len(rows_N), dtype=np.int64)

    def _retired(self, rows_N: np.ndarray) -> np.ndarray:
        """Which prompts are not worth drawing: [N]."""
        retired: np.ndarray = self.stats.last_P[rows_N] % self.stats.group_size == 0
        return retired

    def _any(self, rows: Sequence[int]) -> int:
        return rows[int(self._rng.random() * len(rows))]


class InOrder(Uniform):
    """Each prompt of a stream once, in the order of the stream; where there is no next one, the oldest draw's again."""

    def __init__(self, stats: StatsTable, curriculum: Curriculum, rng: np.random.Generator) -> None:
        """The first prompts are in the order of their rows."""
        super().__init__(stats, curriculum, rng)
        self._turns, self._queues = 0, [deque[tuple[int, int]]() for _ in stats.capabilities]
        self.turn_P = np.zeros(len(stats.kind_P), dtype=np.int64)
        self._enqueue(range(len(self.turn_P)))

    def pick(self, capability: int) -> int | None:
        """As `Uniform.pick`."""
        queue = self._queues[capability]
        while queue:
            turn, row = queue.popleft()
            if self.sets.set_P[row] != NONE and self.turn_P[row] == turn:  # not in flight, or behind another one since
                return row
        return None

    def put(self, rows: Sequence[int]) -> None:
        """As `Uniform.put`."""
        super().put(rows)
        self._enqueue(rows)

    def leaving(self, rows_N: np.ndarray) -> list[int]:
        """As `Uniform.leaving`: those that were drawn, whatever came of it."""
        leaving: list[int] = rows_N.tolist()
        return leaving

    def columns(self) -> dict[str, np.ndarray]:
        """As `Uniform.columns`."""
        return {**super().columns(), "turn": self.turn_P.copy()}

    def restore(self, columns: dict[str, np.ndarray], version: int) -> None:
        """As `Uniform.restore`."""
        self.turn_P = columns["turn"]
        self._turns = int(self.turn_P.max(initial=-1)) + 1
        for queue in self._queues:
            queue.clear()
        super().restore(columns, version)
        # Those that were in flight are in the queues by now, behind the others.
        waiting_N = np.flatnonzero(columns["set"] != NONE)
        order_N = waiting_N[np.argsort(self.turn_P[waiting_N])][::-1]
        for row, number in zip(order_N.tolist(), self.stats.capability(order_N).tolist(), strict=True):
            self._queues[number].appendleft((int(self.turn_P[row]), row))

    def _enqueue(self, rows: Sequence[int]) -> None:
        capabilities = self.stats.capability(np.array(rows, dtype=np.int64)).tolist()
        for row, number in zip(rows, capabilities, strict=True):
            self.turn_P[row] = self._turns
            self._queues[number].append((self._turns, row))
            self._turns += 1


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


class Signal(Uniform):
    """By the expected learning signal: the chance that a group of G has mixed outcomes, `1 - p^G - (1-p)^G`.

    A draw picks a bucket, by how much of it lies in the band of pass rates that the run aims at, and takes a few
    candidates from it and a few that were never drawn. For each a pass rate p is drawn from its posterior (Thompson
    sampling), and the one with the highest signal, less the further p is outside of the band, wins. So prompts never
    drawn are explored as far as others of their kind give hope. Fixed shares of the draws go to easy prompts, against
    forgetting and growing length, and to retired ones that are due. Each re-test that changes nothing doubles the time
    to the next one.
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
        """As `Uniform.columns`. What was chosen ahead is forgotten, so that a restored sampler goes on alike."""
        for chosen in self._chosen:
            chosen.clear()
        return {
            **super().columns(),
            "bucket": self.bucket_P.copy(), "due": self.due_P.copy(), "confirmed": self.confirmed_P.copy(),
        }  # fmt: skip

    def restore(self, columns: dict[str, np.ndarray], version: int) -> None:
        """As `Uniform.restore`."""
        self.bucket_P, self.due_P, self.confirmed_P = (columns[name] for name in ("bucket", "due", "confirmed"))
        super().restore(columns, version)
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
        known = [_some(sets[number], (self._ahead, CANDIDATES), self._rng) for number in ACTIVE if sets[number]]
        unseen = [_some(sets[UNSEEN], (self._ahead, UNSEEN_CANDIDATES), self._rng)] if sets[UNSEEN] else []
        if known:
            chosen = self._rng.choice(len(known), size=self._ahead, p=self._shares(sets, low, high))
            known = [np.stack(known)[chosen, np.arange(self._ahead)]]
        rows = np.concatenate(known + unseen, axis=1)
        rates = self.stats.sample(rows.ravel(), self.version, self._rng).reshape(rows.shape)
        size = self.stats.group_size
        outside = np.maximum(np.maximum(low - rates, rates - high), 0) / SOFTNESS
        values = (1 - rates**size - (1 - rates) ** size) * np.exp(-(outside**2))
        found: list[int] = rows[np.arange(self._ahead), values.argmax(axis=1)].tolist()
        return found

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


SELECTIONS: dict[str, type[Uniform]] = {
    "uniform": Uniform, "dynamic_sampling": Uniform, "pools": Pools, "signal": Signal,
}  # fmt: skip
IN_ORDER = dict.fromkeys(("uniform", "dynamic_sampling"), InOrder)
"""What takes their place with a window on a stream."""
