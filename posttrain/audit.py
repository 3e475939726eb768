"""`posttrain ledger RUN --verify`: was any draw skipped or repeated? Three records are held against each other.

The ledger (what the loop decided), the Parquet shards (what was generated and judged) and the trainer's own log (what
it was trained on) are written by three processes. Compared is the lineage of the newest checkpoint: what came after it
a resume would void, and what earlier resumes have voided is not part of it. Of a draw that has no group, as after a
judge's failure, only the ledger says what was asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from posttrain.ledger import DrawRow, Ledger
from posttrain.rl_state import RLState, standing_checkpoint
from posttrain.trained_log import TrainedLog, digest_of, sequence_digest
from rollouts.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PENDING = ("drawn", "admitted")


class ShardRow(NamedTuple):
    """What is compared of one rollout in a shard."""

    rollout: int
    prompt_id: str
    capability: str
    instruction: str | None
    version: int | None  # None: an older version of posttrain wrote it
    first_version: int
    last_version: int
    outcome: bool
    finish_reason: str
    prompt: bytes  # digest of its tokens
    completion: bytes
    tokens: int


@dataclass(frozen=True)
class Recorded:
    """What the shards have of a draw."""

    prompts: set[tuple[str, str, str | None, int | None]]  # id, capability, instruction, version at the draw
    rollouts: tuple[int, ...]  # their indices
    solved: int
    tokens: int
    truncated: int
    first_version: int
    last_version: int
    digest: str

    @classmethod
    def of(cls, rows: Sequence[ShardRow]) -> Self:
        """Of the rows of a draw, in any order."""
        rows = sorted(rows, key=lambda row: row.rollout)
        prompts = dict.fromkeys(row.prompt for row in rows)
        return cls(
            prompts={(row.prompt_id, row.capability, row.instruction, row.version) for row in rows},
            rollouts=tuple(row.rollout for row in rows),
            solved=sum(row.outcome for row in rows),
            tokens=sum(row.tokens for row in rows),
            truncated=sum(row.finish_reason == "length" for row in rows),
            first_version=min(row.first_version for row in rows),
            last_version=max(row.last_version for row in rows),
            digest=digest_of([*prompts, *(row.completion for row in rows)]),
        )


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
    checkpoint = standing_checkpoint(run)
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
    problems += _consistent(rows, recorded) + _counted(rows, state.summary)
    problems += _against_shards(by_id, recorded) + _against_trainer(by_id, recorded, trained, state.version)
    states = Counter(row.state for row in rows)
    pending = states["drawn"] + states["admitted"]
    return Audit(state.version, len(rows), states["trained"], states["rejected"], pending, tuple(problems))


def _as_of(state: RLState, live: Sequence[DrawRow]) -> tuple[list[DrawRow], list[str]]:
    """The rows as they were at the checkpoint: what has changed since was pending, with the same question."""
    pending = {row.draw_id: row for row in state.watermark.pending}
    rows, problems = [], []
    for row in live:
        if row.draw_id >= state.watermark.next_draw:
            continue
        was, since, then = pending.get(row.draw_id), row.change > state.watermark.change, row
        if was is None and since:
            problems.append(f"draw {row.draw_id}: the ledger changed it after the checkpoint, where it was settled")
            then = replace(row, state="changed")
        elif was is None and row.state in PENDING:
            problems.append(f"draw {row.draw_id}: {row.state} in the ledger, but not pending at the checkpoint")
        elif was is not None:
            then = was
            if _question(row) != _question(was) if since else row != was:
                problems.append(
                    f"draw {row.draw_id}: the ledger has other values than the checkpoint, where it is pending"
                )
        rows.append(then)
    return rows, problems


def _question(row: DrawRow) -> tuple[object, ...]:
    """What of a row never changes."""
    return row.attempt, row.prompt_id, row.capability, row.instruction, row.version


def _once(rows: Iterable[DrawRow], count: int) -> list[str]:
    """Every draw id below the next one has one row."""
    found = Counter(row.draw_id for row in rows)
    problems = [f"draw {draw_id}: skipped; the ledger has no row" for draw_id in range(count) if not found[draw_id]]
    return problems + [f"draw {draw_id}: {times} rows in the ledger" for draw_id, times in found.items() if times > 1]


def _recorded(folder: Path, names: Iterable[str]) -> tuple[dict[int, Recorded], list[str]]:
    """What the shards have, by draw id."""
    rows: dict[int, list[ShardRow]] = defaultdict(list)
    problems = []
    for name in names:
        if (folder / name).is_file():
            for draw_id, row in _shard_rows(folder / name):
                rows[draw_id].append(row)
        else:
            problems.append(f"{folder / name}: missing; the checkpoint counts on it")
    return {draw_id: Recorded.of(group) for draw_id, group in rows.items()}, problems


def _shard_rows(path: Path) -> Iterable[tuple[int, ShardRow]]:
    """The rows of a shard with their draw ids; of the tokens only digests are held."""
    import pyarrow.parquet as pq

    plain = [name for name in ShardRow._fields if name not in ("prompt", "completion", "tokens")]
    there = set(pq.read_schema(path).names)
    wanted = ["draw_id", *plain, "prompt_token_ids", "token_ids"]
    table = pq.read_table(path, columns=[name for name in wanted if name in there])
    prompts, completions = (_sequences(table[name].combine_chunks()) for name in ("prompt_token_ids", "token_ids"))
    absent = [None] * len(table)
    columns = (table[name].to_pylist() if name in there else absent for name in ["draw_id", *plain])
    for (draw_id, *values), prompt_T, completion_T in zip(
        zip(*columns, strict=True), prompts, completions, strict=True
    ):
        digests = sequence_digest(prompt_T), sequence_digest(completion_T)
        yield draw_id, ShardRow._make((*values, *digests, len(completion_T)))


def _sequences(lists: pa.ListArray) -> Iterable[np.ndarray]:
    """The lists of numbers of a column."""
    values, ends = np.asarray(lists.flatten()), np.cumsum(np.asarray(lists.value_lengths().fill_null(0)))
    return np.split(values, ends[:-1]) if len(lists) else []


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
        else:
            problems += _differences(row, found)
    return problems


def _differences(row: DrawRow, found: Recorded) -> list[str]:
    """What shards and ledger say otherwise of a draw that both have."""
    *question, versions = (sorted(set(values), key=str) for values in zip(*found.prompts, strict=True))
    names, asked = ("prompt", "capability", "instruction"), (row.prompt_id, row.capability, row.instruction)
    pairs: list[tuple[str, object, list[object]]] = [
        *zip(names, asked, question, strict=True),
        ("version", row.version, [row.version] if versions == [None] else versions),
        ("solved", row.solved, [found.solved]),
        ("tokens", row.tokens, [found.tokens]),
    ]
    differ = [
        f"{name} {here} in the ledger, {' and '.join(map(str, there))} in the shards"
        for name, here, there in pairs
        if there != [here]
    ]
    problems = [f"draw {row.draw_id}: {'; '.join(differ)}"] if differ else []
    trained_at = found.last_version if row.step is None else row.step - 1
    if not row.version <= found.first_version <= found.last_version <= trained_at:
        when = f"drawn at version {row.version}" + (f", trained in step {row.step}" if row.step is not None else "")
        span = f"{found.first_version} to {found.last_version}"
        problems.append(f"draw {row.draw_id}: {when}, but its tokens are of versions {span}")
    return problems


def _consistent(rows: Sequence[DrawRow], recorded: Mapping[int, Recorded]) -> list[str]:
    """States and reasons are such as the outcomes allow."""
    kept = [row for row in rows if row.state != "rejected"]
    gated = all(row.solved not in (0, row.rollouts) for row in kept if row.rollouts)
    problems = []
    for row in rows:
        if row.state == "changed":
            continue
        fits = row.reason is None if row.state != "rejected" else _allowed(row, recorded.get(row.draw_id), gated)
        if not fits or (row.step is not None) != (row.state == "trained"):
            problems.append(f"draw {row.draw_id}: {_state(row)}, which {row.solved} solved of {row.rollouts} rule out")
    return problems


def _counted(rows: Iterable[DrawRow], summary: Mapping[str, Any]) -> list[str]:
    """As many were trained, and rejected for each reason, as the loop has counted up to the checkpoint."""
    if not summary:
        return []
    entered = Counter(row.reason or "" if row.state == "rejected" else row.state for row in rows)
    counted = {**summary["rejected_by_reason"], "trained": summary["groups_trained"]}
    return [
        f"{what}: {entered[what]} draws in the ledger, {counted.get(what, 0)} by the loop's own count"
        for what in sorted((entered.keys() | counted.keys()) - {*PENDING, "changed"})
        if entered[what] != counted.get(what, 0)
    ]


def _state(row: DrawRow) -> str:
    """State, reason and step in words."""
    reason, step = f" ({row.reason})" if row.reason else "", f" in step {row.step}" if row.step is not None else ""
    return row.state + reason + step


def _allowed(row: DrawRow, found: Recorded | None, gated: bool) -> bool:
    """Whether a draw may have been rejected for its reason; `gated`: groups with equal outcomes always are."""
    equal = row.solved in (0, row.rollouts)
    match row.reason:
        case "all_solved":
            return bool(row.rollouts) and row.solved == row.rollouts
        case "none_solved":
            return bool(row.rollouts) and row.solved == 0
        case "judge":
            return not row.rollouts
        case "truncated":
            return found is not None and found.truncated > 0
        case "stale" | "surplus" | "removed":
            return not row.rollouts or not (gated and equal)
        case _:
            return False


def _against_trainer(
    ledger: Mapping[int, DrawRow], recorded: Mapping[int, Recorded], log: TrainedLog, steps: int
) -> list[str]:
    """Ledger and trainer say the same of each step, and the trainer's tokens are those of the shards."""
    problems = []
    times = Counter(log.draw_id)
    problems += [f"draw {draw_id}: trained {count} times" for draw_id, count in times.items() if count > 1]
    trained: dict[int, set[int]] = defaultdict(set)
    for step, draw_id, tokens, digest in zip(log.step, log.draw_id, log.tokens, log.digest, strict=True):
        trained[step].add(draw_id)
        found = recorded.get(draw_id)
        if found and found.tokens != tokens:
            problems.append(f"draw {draw_id}: {tokens} tokens trained, {found.tokens} in the shards")
        elif found and digest is not None and found.digest != digest:
            problems.append(f"draw {draw_id}: trained on other tokens than those in the shards")
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
