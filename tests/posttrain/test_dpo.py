"""What DPO mines of an RL run."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from curricula.instructions import Instruction, InstructionPools
from judges.endpoint import Endpoint
from judges.preference import TEMPLATE
from posttrain import data
from posttrain.config import PreferenceConfig, load_config, resolve_model
from posttrain.dpo import _asked, _fitting, _fresh, _read, _recorded, _write
from posttrain.pair_trainer import PairTrainer
from posttrain.pairs import PreferencePair
from posttrain.rundir import RunDir
from rollouts.errors import CheckpointError, ConfigError, DataError, JudgeError
from rollouts.generator import Request
from rollouts.recorder import write_rows
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, RolloutGroup, Score
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


def test_a_preference_by_a_template_of_the_users_own(tmp_path: Path) -> None:
    def preference(**settings: str) -> PreferenceConfig:
        return PreferenceConfig(base_url="http://127.0.0.1:9/v1", model="m", **settings)

    assert _asked(preference()) == (Endpoint("http://127.0.0.1:9/v1", "m"), TEMPLATE)
    own = tmp_path / "own.txt"
    own.write_text("{prompt}: {first} or {second}?\n")
    assert _asked(preference(template=str(own)))[1] == "{prompt}: {first} or {second}?"
    own.write_text("{prompt}: {first}?")
    with pytest.raises(ConfigError, match=r"^dpo\.preference\.template: .*own\.txt: has no \{second\}$"):
        _asked(preference(template=str(own)))
    own.write_bytes(b"\xff{prompt}")
    with pytest.raises(ConfigError, match=r"^dpo\.preference\.template: .*own\.txt: is no text"):
        _asked(preference(template=str(own)))
    with pytest.raises(ConfigError, match=r"^dpo\.preference\.template: /nowhere\.txt: No such file"):
        _asked(preference(template="/nowhere.txt"))


def stored(path: Path, *chosen: list[int]) -> datasets.Dataset:
    """Pairs as they are written and read: with these tokens on the better side."""
    pairs = [PreferencePair(PROMPT, "85", "8", ids, [5], "run_on", (1, 2)) for ids in chosen]
    _write(path / "pairs.parquet", pairs, Renderer(resolve_model("tiny:base")))
    return _read(path / "pairs.parquet", path / "cache")


def test_pairs_of_an_earlier_version_are_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.parquet", [{"messages": "[]", "chosen": "85", "rejected": "8", "cut_off": True}])
    with pytest.raises(CheckpointError, match=r"pairs\.parquet: pairs of an earlier version, without their tokens"):
        _read(tmp_path / "pairs.parquet", tmp_path / "cache")


def test_trl_is_given_the_tokens_that_were_sampled_and_no_others(tmp_path: Path) -> None:
    renderer = Renderer(resolve_model("tiny:base"))
    prompt, pad = list(renderer.prompt_tokens(PROMPT.messages)), renderer.tokenizer.pad_token_id
    trainer = PairTrainer(
        model=AutoModelForCausalLM.from_pretrained(resolve_model("tiny:base"), dtype=torch.float32),
        args=DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=64),
        train_dataset=stored(tmp_path, *[[7, 6]] * 4),
        processing_class=renderer.tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    assert inputs["input_ids"].tolist() == [[*prompt, 7, 6]] * 4 + [[*prompt, 5, pad]] * 4
    before = [0] * len(prompt)
    assert inputs["completion_mask"].tolist() == [[*before, 1, 1]] * 4 + [[*before, 1, 0]] * 4


def test_pairs_whose_better_side_would_be_cut_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = stored(tmp_path, [7, 6], [7] * 50, [7])
    longest = len(rows[0]["prompt_ids"]) + 50
    assert len(_fitting(rows, longest)) == 3
    assert _fitting(rows, longest - 1)[:] == rows.select([0, 2])[:]
    assert f"dpo: 1 of 3 pairs left out: longer than dpo.max_length={longest - 1}" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"^every pair is longer than dpo\.max_length=2 tokens; raise it$"):
        _fitting(rows, 2)


class Pool:
    """Answers each request with its number."""

    async def generate(self, requests: Sequence[Request]) -> list[list[Rollout]]:
        return [[Rollout([1], [True], [0.0], [], "stop", str(i))] * each.n for i, each in enumerate(requests)]


async def test_fresh_samples_are_judged_outside_of_the_loop_that_waits_for_them() -> None:
    """A judge on an engine of the run's own runs a loop to wait for its answers, and two do not go into each other."""

    def scorer(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        asyncio.run(asyncio.sleep(0))
        if completions[0].text == "1":
            raise JudgeError("too long")
        return [Score(float(rollout.text), True) for rollout in completions]

    config = load_config("tiny", ["dpo.fresh_prompts=3", "dpo.samples_per_prompt=2", "data.prompts.limit=3"])
    renderer = Renderer(resolve_model("tiny:base"))
    prompts = data.prompts(config, "prompts", renderer, 96, print)
    pool: Any = Pool()
    found = await _fresh(config, renderer, pool, prompts, scorer)
    assert [sampled.rollout.reward for sampled in found] == [0.0, 0.0, 2.0, 2.0]
