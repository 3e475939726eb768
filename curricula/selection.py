"""How the next prompt is chosen: here every prompt alike, as `uniform` and `dynamic_sampling` draw; see `pools.py` and
`signal.py` for the others.

The prompts of a capability that are not in flight lie in sets, and a draw takes one from a set, so that it costs the
same however many prompts there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from curricula.curriculum import Curriculum
from curricula.row_sets import NONE, RowSets
from curricula.stats import StatsTable

FRESH = 8
"""One part in so many of a window is kept unseen: prompts that were seen make room for the stream's next ones."""


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

        As many as it takes for enough of each capability to be unseen: first those that are not worth drawing, then
        those that were seen longest ago, of which no more than there were draws, since where a scan tells of what
        comes next none is unseen. None that is in flight.
        """
        leaving: list[int] = []
        for capability, ended in zip(*np.unique(self.stats.capability(rows_N), return_counts=True), strict=True):
            sets = self.sets.sets[capability * self.sets_each : (capability + 1) * self.sets_each]
            rows_M = np.concatenate([np.array(rows, dtype=np.int64) for rows in sets])
            seen_M = rows_M[self.stats.attempts_P[rows_M] > 0]
            size = np.count_nonzero(self.stats.capability(np.arange(len(self.stats.kind_P))) == capability)
            missing = -(-size // FRESH) - (len(rows_M) - len(seen_M))
            retired_M = self._retired(seen_M)
            order = np.lexsort((np.maximum(self.stats.version_P[seen_M], self.stats.since_P[seen_M]), ~retired_M))
            leaving += seen_M[order[: max(min(missing, np.count_nonzero(retired_M) + ended), 0)]].tolist()
        return leaving

    def replaced(self, rows: Sequence[int]) -> None:
        """Other prompts are in these rows, which were never drawn; of some a scan tells."""
        seen_N = np.array([row for row in rows if self.stats.attempts_P[row]], dtype=np.int64)
        if len(seen_N):
            self.observed(seen_N)
        self.put(rows)

    def columns(self) -> dict[str, np.ndarray]:
        """Copies of what is to be saved of each prompt, by name: each [P]."""
        return {"set": np.array(self.sets.set_P), "place": np.array(self.sets.place_P)}

    def ahead(self) -> list[int]:
        """The rows that are chosen already for the next draws: of each capability the last one first."""
        return []

    def restore_ahead(self, rows: Sequence[int]) -> None:
        """Takes back what `ahead` gave, after `restore`."""

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
