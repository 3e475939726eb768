"""`posttrain rollouts RUN`: what the policy said, and what it got for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from posttrain.rl_state import shards
from rollouts.errors import DataError
from rollouts.recorder import read_shards


def print_transcripts(run: Path, count: int, capability: str | None, unsolved: bool) -> None:
    """Prints the newest transcripts of a run, newest last.

    Raises:
        DataError: the run has no rollouts.
    """
    found = shards(run)
    if not found:
        raise DataError(f"{run}: no rollouts (rl/rollouts/*.parquet); `posttrain rl` writes them at its checkpoints")
    rows: list[dict[str, Any]] = []
    for shard in reversed(found):  # the newest shard may hold few rollouts, or none of this kind
        wanted = [
            row
            for row in read_shards([shard])
            if (capability is None or row["capability"] == capability) and not (unsolved and row["outcome"])
        ]
        rows = wanted + rows
        if len(rows) >= count:
            break
    if not rows:
        raise DataError(f"{run / 'rl' / 'rollouts'}: no rollout is like that")
    out = Console(highlight=False)
    for row in rows[-count:]:
        out.rule(
            f"draw {row['draw_id']}.{row['rollout']}  {row['capability']}  versions {row['first_version']}-"
            f"{row['last_version']}",
            align="left",
        )
        turns = json.loads(row.get("turns", "[]"))  # older shards have none
        for message in json.loads(row["messages"]) + (turns or [{"role": "assistant", "content": row["text"]}]):
            out.print(f"[dim]{message['role']}:[/] {escape(message['content'])}", soft_wrap=True)
        mark = "[green]solved[/]" if row["outcome"] else "[red]unsolved[/]"
        out.print(f"{mark}  reward {row['reward']:g}  {row['finish_reason']}  {escape(row['reason'])}", soft_wrap=True)
