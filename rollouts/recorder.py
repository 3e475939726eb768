"""Rollouts on disk: Parquet shards, one row for each rollout, that `datasets.load_dataset("parquet", …)` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rollouts.types import RolloutGroup


def write_shard(path: Path, groups: Iterable[RolloutGroup]) -> int:
    """Writes a shard atomically; returns how many rows it has (none: no file)."""
    import pyarrow
    import pyarrow.parquet

    rows = [row for group in groups for row in _rows(group)]
    if not rows:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
    temporary.replace(path)
    return len(rows)


def _rows(group: RolloutGroup) -> Iterable[dict[str, Any]]:
    for index, rollout in enumerate(group.rollouts):
        yield {
            "draw_id": group.draw_id,
            "rollout": index,
            "prompt_id": group.prompt.prompt_id,
            "capability": group.prompt.capability,
            "messages": json.dumps(list(group.prompt.messages), ensure_ascii=False),
            "text": rollout.text,
            "reward": rollout.reward,
            "outcome": rollout.outcome,
            "reason": rollout.reason,
            "finish_reason": rollout.finish_reason,
            "first_version": min(span[2] for span in rollout.policy_versions),
            "last_version": max(span[2] for span in rollout.policy_versions),
            "policy_versions": [list(span) for span in rollout.policy_versions],
            "prompt_token_ids": group.prompt_token_ids,
            "token_ids": rollout.token_ids,
            "loss_mask": rollout.loss_mask,
            "logprobs": rollout.logprobs,
        }


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder's shards, in the order of their names."""
    import pyarrow.parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]
