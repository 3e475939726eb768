"""Small RL runs on disk, as the stage leaves them: ledger, shards, the trainer's log, and a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.ledger import Ledger, Watermark
from posttrain.rl_state import RLState
from posttrain.rundir import write_json
from posttrain.trained_log import TrainedLog
from rollouts.recorder import write_shard
from rollouts.types import Prompt, Rollout, RolloutGroup


def group(
    draw: int, capability: str = "math", outcomes: Iterable[bool] = (True, False), version: int | None = None
) -> RolloutGroup:
    """A judged group whose texts tell its draw, and whose tokens' version does so too unless it is given."""
    tokens = draw if version is None else version
    rollouts = [
        Rollout([5] * (draw + 1), [True] * (draw + 1), [-1.0] * (draw + 1), [(0, draw + 1, tokens)], "stop",
                f"text {draw}", float(solved), solved)
        for solved in outcomes
    ]  # fmt: skip
    return RolloutGroup(
        draw, Prompt(f"p{draw}", ({"role": "user", "content": "?"},), capability), [1], rollouts, version
    )


def write_checkpoint(
    run: Path, step: int, shards: Iterable[str] = (), watermark: Watermark | None = None, log: TrainedLog | None = None,
    settings: dict[str, Any] | None = None, summary: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A checkpoint without weights."""
    directory = run / f"rl/checkpoints/step-{step:06d}"
    directory.mkdir(parents=True)
    RLState(step, settings or {}, {}, watermark or Watermark(), tuple(shards), summary or {}).write(directory)
    (log or TrainedLog()).write(directory)
    write_json(directory / "manifest.json", {})
    return directory


def write_shards(run: Path, *shards: list[RolloutGroup]) -> list[str]:
    """Shards of one attempt, a step each."""
    names = [f"attempt-001-step-{step:06d}.parquet" for step in range(1, len(shards) + 1)]
    for name, groups in zip(names, shards, strict=True):
        write_shard(run / "rl/rollouts" / name, groups)
    return names


def write_run(run: Path) -> Path:
    """Draws 0 to 5: trained in step 1 (0, 1) and 2 (3), rejected (2), admitted (4), under way (5)."""
    run.mkdir(exist_ok=True)
    outcomes = (False, False), (True, False)
    groups = [group(draw, outcomes=outcomes[draw != 2], version=int(draw > 2)) for draw in range(5)]
    ledger, log = Ledger(run / "ledger.db"), TrainedLog()
    ledger.begin(0, Watermark())
    for draw in range(6):
        ledger.drawn(draw, f"p{draw}", "math", int(draw > 2))
    for each in groups:
        state, reason = ("rejected", "none_solved") if each.draw_id == 2 else ("admitted", None)
        solved = sum(rollout.outcome for rollout in each.rollouts)
        ledger.judged(each.draw_id, state, reason, solved, 2, 2 * (each.draw_id + 1))
    for step, draws in ((1, [0, 1]), (2, [3])):
        ledger.trained(draws, step)
        log.add(step, [groups[draw] for draw in draws])
    names = write_shards(run, groups[:3], groups[3:])
    summary = {"groups_trained": 3, "rejected_by_reason": {"none_solved": 1}}
    write_checkpoint(run, 2, names, ledger.watermark(next_draw=6), log, summary=summary)
    ledger.close()
    return run
