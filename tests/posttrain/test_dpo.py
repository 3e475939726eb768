"""What DPO mines of an RL run."""

from pathlib import Path

from curricula.instructions import Instruction, InstructionPools
from posttrain.config import load_config
from posttrain.dpo import _recorded
from posttrain.rundir import RunDir
from rollouts.types import Prompt, Rollout, RolloutGroup
from tests.posttrain.lineages import write_checkpoint, write_shards

PROMPT = Prompt("p", ({"role": "user", "content": "47+38"},), "math", answer="85", instruction="own")
ARROW = Instruction("arrow", "Mark it with =>.", ("=>", ""))


def recorded(tmp_path: Path, pools: InstructionPools) -> list[tuple[int, Prompt]]:
    rollout = Rollout([5], [True], [-1.0], [(0, 1, 3)], "stop", "=> 85", 1.0, True)
    groups = [RolloutGroup(draw, prompt, [1], [rollout]) for draw, prompt in enumerate([ARROW.ask(PROMPT), PROMPT])]
    run = RunDir(tmp_path / "r", load_config("tiny"))
    write_checkpoint(run.path, 1, write_shards(run.path, groups))
    return [(sample.draw_id, sample.prompt) for sample in _recorded(run, {"p": PROMPT}, pools)]


def test_rollouts_are_mined_under_the_instruction_that_they_were_asked_under(tmp_path: Path) -> None:
    assert recorded(tmp_path, InstructionPools({"math": [ARROW]})) == [(0, ARROW.ask(PROMPT)), (1, PROMPT)]


def test_rollouts_of_an_instruction_that_is_gone_are_left_out(tmp_path: Path) -> None:
    assert recorded(tmp_path, InstructionPools()) == [(1, PROMPT)]
