"""`posttrain ledger RUN --verify`: was any draw skipped or repeated? Three records are held against each other.

The ledger (what the loop decided), the Parquet shards (what was generated and judged) and the trainer's own log (what
it was trained on) are written by three processes. Compared is the lineage of the newest checkpoint: what came after it
a resume would void, and what earlier resumes have voided is not part of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.ledger import DrawRow, Ledger
from posttrain.rl_state import RLState
from posttrain.rundir import newest_checkpoint
from posttrain.trained_log import TrainedLog
from rollouts.errors import DataError


@dataclass(frozen=True)
class Recorded:
    """What the shards have of a draw."""

    prompt_ids: set[str]
    rollouts: tuple[int, ...]  # their indices
    solved: int | None
    tokens: int | None


@dataclass(frozen=True)
class Audit:
    """What was compared, up to a checkpoint's step, and what does not fit: nothing, if `problems` is empty."""

    step: int
    draws: int
    trained: int
    rejected: int
    pending: int
    problems: tuple[str, ...]


def audit(run: Path) -> Audit:
    """Compares the three records of a run.

    Raises:
        DataError: the run has no ledger or no RL checkpoint.
        CheckpointError: the checkpoint's state cannot be read.
    """
    checkpoint = newest_checkpoint(run, "rl")
    if checkpoint is None or not (run / "ledger.db").is_file():
        raise DataError(f"{run}: no RL checkpoint with a ledger; `posttrain rl` writes them")
    state = RLState.read(checkpoint)
    ledger = Ledger(run / "ledger.db", read_only=True)
    rows, problems = _as_of(state, ledger.rows("voided_by IS NULL"))
    ledger.close()
    by_id = {row.draw_id: row for row in rows}
    recorded, missing = _recorded(run / "rl" / "rollouts", state.shards)
    trained = TrainedLog.read(checkpoint)
    problems += missing + _once(rows, state.watermark.next_draw)
    problems += _against_shards(by_id, recorded) + _against_trainer(by_id, recorded, trained, state.version)
    states = Counter(row.state for row in rows)
    pending = states["drawn"] + states["admitted"]
    return Audit(state.version, len(rows), states["trained"], states["rejected"], pending, tuple(problems))


def _as_of(state: RLState, live: Sequence[DrawRow]) -> tuple[list[DrawRow], list[str]]:
    """The rows as they were at the checkpoint: what has changed since was pending."""
    pending = {row.draw_id: row for row in state.watermark.pending}
    rows, problems = [], []
    for row in live:
        if row.draw_id >= state.watermark.next_draw:
            continue
        if row.change <= state.watermark.change:
            rows.append(row)
        elif row.draw_id in pending:
            rows.append(pending[row.draw_id])
        else:
            problems.append(f"draw {row.draw_id}: the ledger changed it after the checkpoint, where it was settled")
            rows.append(replace(row, state="changed"))
    return rows, problems


def _once(rows: Iterable[DrawRow], count: int) -> list[str]:
    """Every draw id below the next one has one row."""
    found = Counter(row.draw_id for row in rows)
    problems = [f"draw {draw_id}: skipped; the ledger has no row" for draw_id in range(count) if not found[draw_id]]
    return problems + [f"draw {draw_id}: {times} rows in the ledger" for draw_id, times in found.items() if times > 1]


def _recorded(folder: Path, names: Iterable[str]) -> tuple[dict[int, Recorded], list[str]]:
    """What the shards have, by draw id."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows: dict[int, list[dict[str, object]]] = defaultdict(list)
    problems = []
    for name in names:
        if not (folder / name).is_file():
            problems.append(f"{folder / name}: missing; the checkpoint counts on it")
            continue
        table = pq.read_table(folder / name, columns=["draw_id", "rollout", "prompt_id", "outcome", "token_ids"])
        lengths = pc.list_value_length(table["token_ids"])
        for row in table.drop_columns(["token_ids"]).append_column("tokens", lengths).to_pylist():
            rows[row["draw_id"]].append(row)
    return {
        draw_id: Recorded(
            prompt_ids={str(row["prompt_id"]) for row in group},
            rollouts=tuple(sorted(int(str(row["rollout"])) for row in group)),
            solved=sum(bool(row["outcome"]) for row in group),
            tokens=sum(int(str(row["tokens"])) for row in group),
        )
        for draw_id, group in rows.items()
    }, problems


def _against_shards(ledger: Mapping[int, DrawRow], recorded: Mapping[int, Recorded]) -> list[str]:
    """Ledger and shards say the same of each draw."""
    problems = []
    for draw_id in sorted(ledger.keys() | recorded.keys()):
        row, found = ledger.get(draw_id), recorded.get(draw_id)
        expected = row.rollouts or 0 if row else 0
        if row is None:
            problems.append(f"draw {draw_id}: in a shard, but not in the ledger")
        elif found is None:
            if expected:
                problems.append(f"draw {draw_id}: {row.state} in the ledger, but in no shard")
        elif found.rollouts != tuple(range(expected)):
            problems.append(f"draw {draw_id}: {expected} rollouts in the ledger, {list(found.rollouts)} in the shards")
        elif (found.solved, found.tokens, found.prompt_ids) != (row.solved, row.tokens, {row.prompt_id}):
            problems.append(
                f"draw {draw_id}: prompt {row.prompt_id}, {row.solved} solved, {row.tokens} tokens in the ledger, but "
                f"{', '.join(sorted(found.prompt_ids))}, {found.solved}, {found.tokens} in the shards"
            )
    return problems


def _against_trainer(
    ledger: Mapping[int, DrawRow], recorded: Mapping[int, Recorded], log: TrainedLog, steps: int
) -> list[str]:
    """Ledger and trainer say the same of each step, and the trainer's tokens are those of the shards."""
    problems = []
    times = Counter(log.draw_id)
    problems += [f"draw {draw_id}: trained {count} times" for draw_id, count in times.items() if count > 1]
    trained: dict[int, set[int]] = defaultdict(set)
    for step, draw_id, tokens in zip(log.step, log.draw_id, log.tokens, strict=True):
        trained[step].add(draw_id)
        if draw_id in recorded and recorded[draw_id].tokens != tokens:
            problems.append(f"draw {draw_id}: {tokens} tokens trained, {recorded[draw_id].tokens} in the shards")
    entered: dict[int, set[int]] = defaultdict(set)
    for row in ledger.values():
        if row.state == "trained" and row.step is not None:
            entered[row.step].add(row.draw_id)
    for step in range(1, steps + 1):
        for draw_id in sorted(trained[step] ^ entered[step]):
            whose = "the trainer" if draw_id in trained[step] else "the ledger"
            problems.append(f"draw {draw_id}: trained in step {step} by {whose} alone")
    problems += [f"step {step}: trained, but past the checkpoint's {steps}" for step in trained if step > steps]
    return problems
