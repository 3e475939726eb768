"""`posttrain ledger RUN`: counts by state, what happened to a prompt, what a step was trained on, and the audit."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from posttrain.audit import audit
from posttrain.ledger import DrawRow, Ledger
from rollouts.errors import DataError

SHOWN = 20
"""Problems that are listed; the others are counted."""


def print_ledger(run: Path, prompt: str | None, step: int | None) -> None:
    """Prints the draws of a prompt (its id, or how that begins), or of a train step; else how many are in each state.

    Raises:
        DataError: the run has no ledger, or none of its draws is like that.
    """
    path = run / "ledger.db"
    if not path.is_file():
        raise DataError(f"{run}: no ledger (ledger.db); `posttrain rl` writes it")
    ledger = Ledger(path, read_only=True)
    out = Console(highlight=False)
    if prompt is None and step is None:
        counts = ledger.counts()
        table = Table("state", "draws", title=f"{run}: {sum(counts.values())} draws", title_justify="left")
        table.columns[1].justify = "right"
        for state, count in counts.items():
            table.add_row(state, f"{count:,}")
        out.print(table)
        for attempt, origin, _ in ledger.attempts():
            out.print(f"attempt {attempt}: " + (f"went on from step {origin}" if origin else "from the start"))
        return
    conditions = [("prompt_id LIKE ?", f"{prompt}%")] if prompt is not None else []
    conditions += [("step = ?", str(step))] if step is not None else []
    rows = ledger.rows(" AND ".join(text for text, _ in conditions), [value for _, value in conditions])
    ledger.close()
    if not rows:
        raise DataError(f"{path}: no draw of " + " and ".join(text.replace("?", value) for text, value in conditions))
    for row in rows:
        out.print(_line(row), soft_wrap=True)


def print_audit(run: Path) -> bool:
    """Prints what the audit found; returns whether every draw is there exactly once."""
    found = audit(run)
    out = Console(highlight=False)
    for problem in found.problems[:SHOWN]:
        out.print(problem, soft_wrap=True)
    if len(found.problems) > SHOWN:
        out.print(f"and {len(found.problems) - SHOWN} more")
    what = f"{found.draws} draws up to step {found.step}: {found.trained} trained, {found.rejected} rejected, "
    what += f"{found.pending} pending"
    if found.problems:
        out.print(f"{run}: {len(found.problems)} problems in {what}", soft_wrap=True)
    else:
        out.print(f"{run}: {what}; each exactly once, in ledger, shards and trainer alike", soft_wrap=True)
    return not found.problems


def _line(row: DrawRow) -> str:
    state = row.state + (f" ({row.reason})" if row.reason else "") + (f" in step {row.step}" if row.step else "")
    parts = [f"draw {row.draw_id}", f"prompt {row.prompt_id}", row.capability, f"version {row.version}", state]
    if row.instruction:
        parts.insert(3, f"instruction {row.instruction}")
    if row.rollouts:
        parts.append(f"{row.solved} of {row.rollouts} solved, {row.tokens} tokens")
    if row.voided_by is not None:
        parts.append(f"void: attempt {row.voided_by} went on without it")
    return "  ".join(parts)
