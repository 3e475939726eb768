"""The ledger: what became of every draw, in SQLite.

Keyed by `(attempt, draw_id)`, where an attempt is one life of the run between resumes. A draw's states are
drawn → admitted | rejected(reason) → trained(step); resuming voids what was drawn but not trained.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS draws (
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
    PRIMARY KEY (attempt, draw_id)
)
"""


class Ledger:
    """One run's draws. Writes are collected and committed at step boundaries, in one transaction each."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the ledger and begins the next attempt."""
        self._db = sqlite3.connect(path, isolation_level="IMMEDIATE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(_SCHEMA)
        self.attempt = self._db.execute("SELECT coalesce(max(attempt), 0) + 1 FROM draws").fetchone()[0]

    def drawn(
        self, draw_id: int, prompt_id: str, capability: str, version: int, instruction: str | None = None
    ) -> None:
        """A prompt was drawn for rollouts under a policy version, and asked under the instruction of that id."""
        self._db.execute(
            "INSERT INTO draws (attempt, draw_id, prompt_id, capability, instruction, version, state)"
            " VALUES (?, ?, ?, ?, ?, ?, 'drawn')",
            (self.attempt, draw_id, prompt_id, capability, instruction, version),
        )

    def judged(self, draw_id: int, state: str, reason: str | None, solved: int, rollouts: int, tokens: int) -> None:
        """A draw's group was admitted or rejected."""
        self._db.execute(
            "UPDATE draws SET state=?, reason=?, solved=?, rollouts=?, tokens=? WHERE attempt=? AND draw_id=?",
            (state, reason, solved, rollouts, tokens, self.attempt, draw_id),
        )

    def trained(self, draw_ids: Iterable[int], step: int) -> None:
        """The groups of these draws made train step `step`; commits."""
        self._db.executemany(
            "UPDATE draws SET state='trained', step=? WHERE attempt=? AND draw_id=?",
            [(step, self.attempt, draw_id) for draw_id in draw_ids],
        )
        self._db.commit()

    def void(self, after_step: int) -> int:
        """On resume: whatever earlier attempts trained after a step, or drew and did not finish, is void.

        Returns:
            How many draws were voided.
        """
        count = self._db.execute(
            "UPDATE draws SET state='void' WHERE attempt < ? AND (state IN ('drawn', 'admitted') OR"
            " (state='trained' AND step > ?))",
            (self.attempt, after_step),
        ).rowcount
        self._db.commit()
        return count

    def counts(self) -> dict[str, int]:
        """Draws by state, rejections by reason, of all attempts."""
        rows = self._db.execute(
            "SELECT state || coalesce('(' || reason || ')', ''), count(*) FROM draws GROUP BY 1 ORDER BY 1"
        )
        return dict(rows.fetchall())

    def next_draw_id(self) -> int:
        """Draw ids go on over attempts, so that one names the same draw in every record."""
        return int(self._db.execute("SELECT coalesce(max(draw_id), -1) + 1 FROM draws").fetchone()[0])

    def pass_rates(self) -> list[float]:
        """Each judged group's share of solved rollouts."""
        rows = self._db.execute("SELECT 1.0 * solved / rollouts FROM draws WHERE rollouts > 0")
        return [row[0] for row in rows]

    def close(self) -> None:
        """Commits and closes."""
        self._db.commit()
        self._db.close()
