"""What DPO mines of an RL run."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from curricula.instructions import Instruction, InstructionPools
from judges.endpoint import Endpoint
from judges.preference import TEMPLATE
from posttrain import data
from posttrain.config import PreferenceConfig, load_config, resolve_model
from posttrain.dpo import _as_sampled, _asked, _conversation, _fitting, _fresh, _recorded, _tokens
from posttrain.rundir import RunDir
from rollouts.env import turn_end
from rollouts.errors import ConfigError, DataError, JudgeError
from rollouts.generator import Request
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


RENDERER = Renderer(resolve_model("tiny:base"))


def tokenized(*rows: dict[str, Any], template: str | None = None) -> list[dict[str, list[int]]]:
    renderer = Renderer(resolve_model("tiny:base"))
    renderer.tokenizer.chat_template = template or renderer.tokenizer.chat_template
    end = turn_end(renderer.tokenizer)
    stored = {"messages": json.dumps(PROMPT.messages), "chosen": "85", "rejected": "84"}
    return [_tokens({**stored, **row}, renderer, end)["sampled"] for row in rows]


def test_what_was_cut_off_is_rejected_without_an_end() -> None:
    end = RENDERER.tokenizer.convert_tokens_to_ids("<|end|>")
    words = RENDERER.tokenizer("2 and 3")["input_ids"]
    rows = [{"rejected": text, "cut_off": cut} for text in ("2 and 3", "") for cut in (True, False)]
    found = tokenized(*rows)
    assert [each["rejected_ids"] for each in found] == [words, [*words, end], [], [end]]
    assert [each["chosen_ids"] for each in found] == [[*RENDERER.tokenizer("85")["input_ids"], end]] * 4
    assert {tuple(each["prompt_ids"]) for each in found} == {RENDERER.prompt_tokens(PROMPT.messages)}
    assert tokenized({})[0]["rejected_ids"][-1] == end  # pairs that an older version mined


def test_thoughts_that_were_cut_off_are_not_what_a_template_makes_of_them() -> None:
    (found,) = tokenized({"rejected": "<think>\nlong", "cut_off": True}, template=qwen3_chat_template)
    assert RENDERER.tokenizer.decode(found["rejected_ids"]) == "<think>\nlong"
    assert RENDERER.tokenizer.decode(found["chosen_ids"]) == "85<|im_end|>\n"


def test_trl_is_given_these_tokens_and_no_others(tmp_path: Path) -> None:
    row = {"messages": json.dumps(PROMPT.messages), "chosen": "85", "rejected": "8 4", "cut_off": True}
    rows = datasets.Dataset.from_list([row] * 4).map(_conversation)
    sampled = {"prompt_ids": [1, 9, 8], "chosen_ids": [7, 6], "rejected_ids": [5]}
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(resolve_model("tiny:base"), dtype=torch.float32),
        args=DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=64),
        train_dataset=rows.map(lambda _: {"sampled": sampled}),
        processing_class=RENDERER.tokenizer,
    )
    trainer.train_dataset = trainer.train_dataset.map(_as_sampled)
    inputs = next(iter(trainer.get_train_dataloader()))
    pad = RENDERER.tokenizer.pad_token_id
    assert inputs["input_ids"].tolist() == [[1, 9, 8, 7, 6]] * 4 + [[1, 9, 8, 5, pad]] * 4
    assert inputs["completion_mask"].tolist() == [[0, 0, 0, 1, 1]] * 4 + [[0, 0, 0, 1, 0]] * 4


def test_pairs_whose_better_side_would_be_cut_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    sampled = tokenized({"chosen": "85"}, {"chosen": "85 " * 50}, {"rejected": "85 " * 50})
    rows = datasets.Dataset.from_list([{"sampled": each} for each in sampled])
    longest = len(sampled[1]["prompt_ids"]) + len(sampled[1]["chosen_ids"])
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
