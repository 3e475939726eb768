"""What a resumed RL run takes up: the draws that were pending at its checkpoint, with the groups of those judged.

All of it is read before anything that came later is given up, and before an engine is started.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curricula.instructions import InstructionPools
from curricula.row_sets import NONE
from curricula.sampler import PromptSampler, Restored
from posttrain.ledger import DrawRow
from posttrain.rl_state import UNDER_WAY, RLState
from posttrain.slots import Draw
from rollouts.errors import CheckpointError, first_line
from rollouts.recorder import read_groups
from rollouts.types import Prompt, RolloutGroup


@dataclass(frozen=True)
class Pending:
    """The pending draws in draw order, each with its group if it was admitted; and those that are gone: the prompt, or
    the instruction that it was asked under.
    """

    draws: list[tuple[Draw, RolloutGroup | None]]
    removed: list[DrawRow]

    @property
    def admitted(self) -> int:
        """How many have a group."""
        return sum(group is not None for _, group in self.draws)


@dataclass(frozen=True)
class TakenUp:
    """What there is of a checkpoint to go on with, beside policy and optimizer; `begun` is by draw id."""

    prompts: Restored
    pending: Pending
    begun: dict[int, RolloutGroup]

    def __str__(self) -> str:
        begun, removed, made = len(self.begun), len(self.pending.removed), len(self.pending.draws)
        return (
            f"{self.pending.admitted} groups wait to be trained, {begun} draws go on where they stood"
            f", {made - self.pending.admitted - begun} are made again"
            + f", {removed} were of prompts that are gone" * bool(removed)
            + f"; prompts: {self.prompts}" * bool(self.prompts.removed or self.prompts.new)
        )


def take_up(
    checkpoint: Path,
    state: RLState,
    sampler: PromptSampler,
    instructions: InstructionPools,
    folder: Path,
    group_size: int,
) -> TakenUp:
    """Reads a checkpoint, as far as the prompts are still there, and gives the sampler its state.

    Args:
        checkpoint: to go on from.
        state: of it.
        sampler: of the prompts as they are now, as it was made.
        instructions: the pools as they are now.
        folder: of the shards.
        group_size: rollouts in a group now.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    pending = pending_draws(state, sampler, instructions, folder)
    restored = sampler.load(checkpoint)
    under_way = [draw for draw, group in pending.draws if group is None]
    return TakenUp(restored, pending, begun_groups(checkpoint, under_way, group_size))


def pending_draws(state: RLState, sampler: PromptSampler, instructions: InstructionPools, folder: Path) -> Pending:
    """The draws that were pending at a checkpoint, asked as the ledger says, whatever pools and seed are now.

    Args:
        state: of the checkpoint.
        sampler: of the prompts as they are now.
        instructions: the pools as they are now.
        folder: of the shards.

    Raises:
        CheckpointError: a shard that the checkpoint counts on is missing or damaged.
    """
    paths = [folder / name for name in state.shards]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise CheckpointError(f"{missing}: missing; the checkpoint counts on it: put it back, or choose another one")
    rows = {prompt.prompt_id: row for row, prompt in enumerate(sampler.prompts)} if state.watermark.pending else {}
    draws: dict[int, Draw] = {}
    admitted: dict[int, Prompt | None] = {}
    left: list[DrawRow] = []  # judged, and their prompts made room for the next ones of the stream
    removed: list[DrawRow] = []
    for was in state.watermark.pending:
        row = rows.get(was.prompt_id)
        prompt = None if row is None else _as_drawn(was, sampler.prompts[row], instructions)
        if row is not None and prompt is not None:
            draws[was.draw_id] = Draw(was.draw_id, row, prompt, was.version)
            if was.state == "admitted":
                admitted[was.draw_id] = prompt
        elif row is None and was.state == "admitted" and sampler.window is not None:
            admitted[was.draw_id] = None
            left.append(was)
        else:
            removed.append(was)
    groups = _judged(folder, paths, admitted)
    for was in left:
        draws[was.draw_id] = Draw(was.draw_id, NONE, groups[was.draw_id].prompt, was.version)
    return Pending(
        [(draws[draw_id], groups[draw_id] if draw_id in admitted else None) for draw_id in sorted(draws)], removed
    )


def _judged(folder: Path, shards: Sequence[Path], prompts: Mapping[int, Prompt | None]) -> dict[int, RolloutGroup]:
    """The groups of some draws from their shards, all of them."""
    import pyarrow as pa

    try:
        groups = read_groups(shards, prompts)
    except (pa.ArrowInvalid, OSError) as error:
        problem = f"cannot be read ({first_line(error)})"
    else:
        if not (missing := sorted(prompts.keys() - groups.keys())):
            return groups
        problem = f"do not hold the group of draw {missing[0]}"
    raise CheckpointError(f"{folder}: the shards of the checkpoint {problem}; choose another one") from None


def _as_drawn(was: DrawRow, prompt: Prompt, instructions: InstructionPools) -> Prompt | None:
    """A prompt as a pending draw asked it; None if that is not what is trained on any more."""
    return instructions.as_drawn(prompt, was.instruction, trained=True) if prompt.domain == was.capability else None


def begun_groups(checkpoint: Path, draws: Collection[Draw], group_size: int) -> dict[int, RolloutGroup]:
    """What there was at a checkpoint of the groups of draws that were under way, by draw id; not of those without any
    token. Where groups are smaller by now, their last rollouts are left out.
    """
    path = checkpoint / UNDER_WAY
    groups = read_groups([path] if path.is_file() else [], {draw.draw_id: draw.prompt for draw in draws})
    for group in groups.values():
        del group.rollouts[group_size:]
    return {draw_id: group for draw_id, group in groups.items() if group.versions}
