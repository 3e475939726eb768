"""Rollouts on disk: Parquet shards, one row for each rollout, that `datasets.load_dataset("parquet", …)` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollouts.types import Prompt, Rollout, RolloutGroup


def write_shard(path: Path, groups: Iterable[RolloutGroup]) -> int:
    """Writes a shard atomically; returns how many rows it has (none: no file)."""
    rows = [row for group in groups for row in _rows(group)]
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows)
    return len(rows)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as a Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.replace(path)


def _rows(group: RolloutGroup) -> Iterable[dict[str, Any]]:
    for index, rollout in enumerate(group.rollouts):
        yield {
            "draw_id": group.draw_id,
            "rollout": index,
            "prompt_id": group.prompt.prompt_id,
            "capability": group.prompt.capability,
            "instruction": group.prompt.instruction,
            "messages": json.dumps(list(group.prompt.messages), ensure_ascii=False),
            "text": rollout.text,
            "turns": json.dumps(rollout.turns, ensure_ascii=False),
            "reward": rollout.reward,
            "outcome": rollout.outcome,
            "reason": rollout.reason,
            "breakdown": json.dumps(rollout.breakdown),
            "finish_reason": rollout.finish_reason,
            "first_version": min(span[2] for span in rollout.policy_versions),
            "last_version": max(span[2] for span in rollout.policy_versions),
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
    table = ds.dataset([str(path) for path in paths]).to_table(filter=ds.field("draw_id").isin(list(prompts)))
    groups: dict[int, RolloutGroup] = {}
    for row in table.to_pylist():
        draw_id = row["draw_id"]
        if draw_id not in groups:
            prompt = prompts[draw_id] or _prompt(row)
            groups[draw_id] = RolloutGroup(draw_id, prompt, row["prompt_token_ids"], [])
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
