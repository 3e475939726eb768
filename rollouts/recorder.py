"""Rollouts on disk: Parquet shards, one row for each rollout, that `datasets.load_dataset("parquet", …)` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    import pyarrow as pa


def write_shard(path: Path, groups: Iterable[RolloutGroup]) -> int:
    """Writes a shard atomically; returns how many rows it has (none: no file)."""
    rows = [row for group in groups for row in _rows(group)]
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows, shard_schema())
    return len(rows)


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Writes rows as a Parquet file, atomically; types are those of the values unless there is a schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, temporary = pa.Table.from_pylist(rows, schema), path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@cache
def shard_schema() -> pa.Schema:
    """The columns of every shard. Types found by the values differ where a column of one shard has nothing but nulls,
    and such shards cannot be read together.
    """
    import pyarrow as pa

    text, number, real, numbers = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int64())
    return pa.schema(
        {
            "draw_id": number, "rollout": number, "prompt_id": text, "capability": text, "instruction": text,
            "version": number, "messages": text, "text": text, "turns": text, "reward": real, "outcome": pa.bool_(),
            "reason": text, "breakdown": text, "finish_reason": text, "first_version": number, "last_version": number,
            "policy_versions": pa.list_(numbers), "prompt_token_ids": numbers, "token_ids": numbers,
            "loss_mask": pa.list_(pa.bool_()), "logprobs": pa.list_(real),
        }
    )  # fmt: skip


def _rows(group: RolloutGroup) -> Iterable[dict[str, Any]]:
    for index, rollout in enumerate(group.rollouts):
        yield {
            "draw_id": group.draw_id,
            "rollout": index,
            "prompt_id": group.prompt.prompt_id,
            "capability": group.prompt.domain,
            "instruction": group.prompt.instruction,
            "version": group.version,
            "messages": json.dumps(list(group.prompt.messages), ensure_ascii=False),
            "text": rollout.text,
            "turns": json.dumps(rollout.turns, ensure_ascii=False),
            "reward": float(rollout.reward),
            "outcome": bool(rollout.outcome),
            "reason": rollout.reason,
            "breakdown": json.dumps(rollout.breakdown),
            "finish_reason": rollout.finish_reason,
            "first_version": min((span[2] for span in rollout.policy_versions), default=None),
            "last_version": max((span[2] for span in rollout.policy_versions), default=None),
            "policy_versions": [list(span) for span in rollout.policy_versions],
            "prompt_token_ids": group.prompt_token_ids,
            "token_ids": rollout.token_ids,
            "loss_mask": rollout.loss_mask,
            "logprobs": rollout.logprobs,
        }


def read_groups(paths: Sequence[Path], prompts: Mapping[int, Prompt | None]) -> dict[int, RolloutGroup]:
    """The groups of some draws, by draw id, as they were written.

    `prompts` has the prompt of each draw. None: what was written of it, which is what it was asked as, not how it is
    verified.
    """
    import pyarrow.dataset as ds

    if not paths or not prompts:
        return {}
    shards = ds.dataset([str(path) for path in paths], schema=shard_schema())  # older ones have types of their own
    table = shards.to_table(filter=ds.field("draw_id").isin(list(prompts)))
    groups: dict[int, RolloutGroup] = {}
    for row in table.to_pylist():
        draw_id = row["draw_id"]
        if draw_id not in groups:
            prompt = prompts[draw_id] or _prompt(row)
            groups[draw_id] = RolloutGroup(draw_id, prompt, row["prompt_token_ids"], [], row["version"])
        groups[draw_id].rollouts.append(_rollout(row))
    return groups


def _prompt(row: Mapping[str, Any]) -> Prompt:
    messages = tuple(json.loads(row["messages"]))
    return Prompt(row["prompt_id"], messages, row["capability"], instruction=row["instruction"])


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        token_ids=row["token_ids"],
        loss_mask=row["loss_mask"],
        logprobs=row["logprobs"],
        policy_versions=[(start, end, version) for start, end, version in row["policy_versions"]],
        finish_reason=row["finish_reason"],
        text=row["text"],
        reward=row["reward"],
        outcome=row["outcome"],
        breakdown=json.loads(row["breakdown"]),
        reason=row["reason"],
        turns=json.loads(row["turns"]),
    )


def read_shards(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All rows of some shards, in order."""
    import pyarrow.parquet as pq

    return [row for path in paths for row in pq.read_table(path).to_pylist()]
