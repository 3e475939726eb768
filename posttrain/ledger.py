"""The ledger: what became of every draw, in SQLite.

Keyed by `(attempt, draw_id)`, where an attempt is one life of the run between resumes. A draw's states are
drawn → admitted | rejected(reason) → trained(step). Changes are numbered over all attempts; a checkpoint keeps the
number of the last one, its watermark. A resume voids what came later, and takes up again what was pending then; so of
the rows that are not void there is one for each draw id, which SQLite itself enforces.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rollouts.errors import CheckpointError, ConfigError

FORMAT = 2
_SCHEMA = f"""
BEGIN;
CREATE TABLE attempts (
    attempt INTEGER PRIMARY KEY,
    step INTEGER NOT NULL,  -- of the checkpoint that it went on from; 0: none
    watermark INTEGER NOT NULL
);
CREATE TABLE draws (
    attempt INTEGER NOT NULL,
    draw_id INTEGER NOT NULL,
    prompt_id TEXT NOT NULL,
    capability TEXT NOT NULL,
    instruction TEXT,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    solved INTEGER,
    rollouts INTEGER,
    tokens INTEGER,
    step INTEGER,
    change INTEGER NOT NULL,  -- the number of the last one
    voided_by INTEGER,  -- the attempt that it is void since
    PRIMARY KEY (attempt, draw_id)
);
CREATE UNIQUE INDEX live ON draws (draw_id) WHERE voided_by IS NULL;
CREATE INDEX by_prompt ON draws (prompt_id);
CREATE INDEX by_step ON draws (step);
PRAGMA user_version = {FORMAT};
COMMIT;
"""


@dataclass(frozen=True)
class DrawRow:
    """A row: where a draw stands. `solved` of `rollouts` rollouts were; `voided_by` is the attempt that went on without
    it.

    Example: `DrawRow(1, 17, "9f…", "math", "ans-0", 3, "trained", None, 4, 8, 620, 5, 112, None)`
    """

    attempt: int
    draw_id: int
    prompt_id: str
    capability: str
    instruction: str | None
    version: int
    state: str
    reason: str | None
    solved: int | None
    rollouts: int | None
    tokens: int | None
    step: int | None
    change: int
    voided_by: int | None


@dataclass(frozen=True)
class Watermark:
    """Where the ledger stood at a checkpoint.

    `pending` are the draws that were not yet trained or rejected, in draw order: admitted ones have a group, the others
    were under way.

    Example: `Watermark(attempt=1, change=112, next_draw=40, pending=(…,))`
    """

    attempt: int = 0
    change: int = 0
    next_draw: int = 0
    pending: tuple[DrawRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint's state."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `as_json` gave."""
        return cls(**{**values, "pending": tuple(DrawRow(**row) for row in values["pending"])})


class Ledger:
    """One run's draws. Writes are collected and committed at step boundaries, in one transaction each."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Opens or creates the ledger.

        Raises:
            ConfigError: it was written by another version of posttrain.
        """
        options = "mode=ro" if read_only else "mode=rwc"
        # Where nothing may be written, not even a database that is closed can be read unless it is said not to change.
        if read_only and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
            options = "immutable=1"
        self._db = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, isolation_level="IMMEDIATE")
        try:
            tables = self._one("SELECT count(*) FROM sqlite_master")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: no ledger that can be read: {error}") from None
        if not tables:
            if read_only:  # the run was killed while it made the file: there is nothing in it
                self._db.close()
                self._db = sqlite3.connect(":memory:")
            else:
                self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        if self._one("PRAGMA user_version") != FORMAT:
            raise ConfigError(f"{path}: a ledger of another version of posttrain; choose another --run")
        self.attempt = self._one("SELECT coalesce(max(attempt), 0) FROM attempts")
        self._change = self._one("SELECT coalesce(max(change), 0) FROM draws")

    def begin(self, step: int, watermark: Watermark) -> int:
        """Begins the next attempt, from a checkpoint or anew: voids what came after it, takes up what was pending.

        Returns:
            How many draws are void now, beside those that are taken up again.

        Raises:
            CheckpointError: the run was continued from an earlier checkpoint since, without this one.
        """
        self.check(step, watermark)
        self.attempt += 1
        self._db.execute("INSERT INTO attempts VALUES (?, ?, ?)", (self.attempt, step, watermark.change))
        voided = self._db.execute(
            "UPDATE draws SET voided_by=? WHERE voided_by IS NULL AND (change > ? OR state IN ('drawn', 'admitted'))",
            (self.attempt, watermark.change),
        ).rowcount
        for row in watermark.pending:
            values = (row.state, row.solved, row.rollouts, row.tokens)
            assignments = "state=?, reason=NULL, solved=?, rollouts=?, tokens=?, step=NULL, voided_by=NULL"
            self._set(assignments, "attempt=? AND draw_id=?", values, (row.attempt, row.draw_id))
        self._db.commit()
        return voided - len(watermark.pending)

    def given_up(self, watermark: Watermark) -> tuple[int, int] | None:
        """`(attempt, step)`: the attempt that went on without the checkpoint of a watermark, and from which step; None
        if none did.
        """
        found = (
            (attempt, origin)
            for attempt, origin, change in self.attempts()
            if attempt > watermark.attempt and change < watermark.change
        )
        return next(found, None)

    def check(self, step: int, watermark: Watermark) -> None:
        """Raises CheckpointError if the run went on without the checkpoint of a step."""
        if (found := self.given_up(watermark)) is not None:
            problem = f"was given up when the run went on from step {found[1]} (attempt {found[0]})"
            raise CheckpointError(f"the checkpoint of step {step} {problem}; choose another one, or a new --run")

    def drawn(
        self, draw_id: int, prompt_id: str, capability: str, version: int, instruction: str | None = None
    ) -> None:
        """A prompt was drawn for rollouts under a policy version, and asked under the instruction of that id."""
        self._change += 1
        self._db.execute(
            "INSERT INTO draws (attempt, draw_id, prompt_id, capability, instruction, version, state, change)"
            " VALUES (?, ?, ?, ?, ?, ?, 'drawn', ?)",
            (self.attempt, draw_id, prompt_id, capability, instruction, version, self._change),
        )

    def judged(self, draw_id: int, state: str, reason: str | None, solved: int, rollouts: int, tokens: int) -> None:
        """A draw's group was admitted or rejected."""
        values = (state, reason, solved, rollouts, tokens)
        self._set(
            "state=?, reason=?, solved=?, rollouts=?, tokens=?", "draw_id=? AND voided_by IS NULL", values, (draw_id,)
        )

    def trained(self, draw_ids: Iterable[int], step: int) -> None:
        """The groups of these draws made train step `step`; commits."""
        for draw_id in draw_ids:
            self._set("state='trained', step=?", "draw_id=? AND voided_by IS NULL", (step,), (draw_id,))
        self._db.commit()

    def watermark(self, next_draw: int) -> Watermark:
        """Where the ledger stands, for a checkpoint; commits."""
        self._db.commit()
        pending = self.rows("voided_by IS NULL AND state IN ('drawn', 'admitted')")
        return Watermark(self.attempt, self._change, next_draw, tuple(pending))

    def rows(self, where: str = "1", values: Sequence[Any] = ()) -> list[DrawRow]:
        """Rows by a condition in SQL, in draw order."""
        names = ", ".join(DrawRow.__dataclass_fields__)
        found = self._db.execute(f"SELECT {names} FROM draws WHERE {where} ORDER BY draw_id, attempt", values)
        return [DrawRow(*row) for row in found]

    def attempts(self) -> list[tuple[int, int, int]]:
        """`(attempt, step, watermark)`: each attempt, with the step and watermark that it went on from."""
        return self._db.execute("SELECT attempt, step, watermark FROM attempts ORDER BY attempt").fetchall()

    def counts(self) -> dict[str, int]:
        """Draws by state, rejections by reason; those that are void as `void`."""
        rows = self._db.execute(
            "SELECT CASE WHEN voided_by IS NULL THEN state || coalesce('(' || reason || ')', '') ELSE 'void' END,"
            " count(*) FROM draws GROUP BY 1 ORDER BY 1"
        )
        return dict(rows.fetchall())

    def pass_rates(self) -> list[float]:
        """Each judged group's share of solved rollouts."""
        rows = self._db.execute("SELECT 1.0 * solved / rollouts FROM draws WHERE rollouts > 0 AND voided_by IS NULL")
        return [row[0] for row in rows]

    def close(self) -> None:
        """Commits and closes."""
        self._db.commit()
        self._db.close()

    def _set(self, assignments: str, where: str, values: Sequence[Any], keys: Sequence[Any]) -> None:
        self._change += 1
        self._db.execute(f"UPDATE draws SET {assignments}, change=? WHERE {where}", (*values, self._change, *keys))

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])
