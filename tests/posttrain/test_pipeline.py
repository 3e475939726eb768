"""What `posttrain run` takes for done: no other checkpoint in the old one's place, no report of other prompts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain import pipeline
from posttrain.config import Config, load_config, resolve_model
from posttrain.dpo import NothingToRepairError
from posttrain.evaluate import Report
from posttrain.pipeline import _asked, _evaluated, _export, _trained
from posttrain.rundir import RunDir, write_json
from rollouts.errors import ConfigError
from rollouts.types import Prompt

CONFIG = load_config("tiny")
REPORT = Report(
    prompts=1, samples=1, pass_at_1=0.5, ci95=(0.4, 0.6), pass_at_k={}, by_temperature={}, greedy=None, best=0.5,
    by_capability={}, by_difficulty={}, by_instruction={}, by_instruction_use={}, corner_cases={},
    corner_case_counts={}, mean_tokens=1.0, reward_by_capability={}, tokens_by_capability={}, by_prompt={},
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r", CONFIG)


class Stage:
    """Writes a checkpoint of some text, and counts how often it was asked to."""

    def __init__(self, name: str) -> None:
        self.name, self.text, self.calls = name, "weights", 0

    def __call__(self, config: Config, run: RunDir, resume: str | None) -> Path:
        self.calls += 1
        return write(run, self.name, 5, self.text)


def write(run: RunDir, stage: str, step: int, text: str) -> Path:
    with run.new_checkpoint(stage, step, "parent", 10) as directory:
        (directory / "model.safetensors").write_text(text)
        (directory / "config.json").write_text("{}")
    return run.path / stage / "checkpoints" / f"step-{step:06d}"


def test_a_stage_is_done_as_long_as_its_checkpoint_is_the_one_that_it_ended_with(run: RunDir) -> None:
    rl = Stage("rl")
    first = _trained(CONFIG, run, "rl", rl, None)
    assert _trained(CONFIG, run, "rl", rl, None) == first
    assert rl.calls == 1
    write(run, "rl", 5, "other weights")  # the same name, as by a resume from an earlier checkpoint
    _trained(CONFIG, run, "rl", rl, None)
    assert rl.calls == 2
    write(run, "rl", 7, "stopped on the way")
    _trained(CONFIG, run, "rl", rl, None)
    assert rl.calls == 3


def test_a_stage_that_began_with_another_checkpoint_is_told(run: RunDir) -> None:
    rl, dpo = Stage("rl"), Stage("dpo")
    start = _trained(CONFIG, run, "rl", rl, None)
    _trained(CONFIG, run, "dpo", dpo, start)
    _trained(CONFIG, run, "dpo", dpo, start)
    assert dpo.calls == 1
    write(run, "rl", 5, "other weights")
    with pytest.raises(ConfigError, match=r"stage 'dpo' began with another checkpoint than .*step-000005 is now; move"):
        _trained(CONFIG, run, "dpo", dpo, start)
    assert dpo.calls == 1


def test_a_stage_that_was_stopped_does_not_go_on_from_another_start(run: RunDir) -> None:
    start, dpo = write(run, "rl", 5, "weights"), Stage("dpo")

    def stopped(config: Config, run: RunDir, resume: str | None) -> Path:
        write(run, "dpo", 3, "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _trained(CONFIG, run, "dpo", stopped, start)
    write(run, "rl", 5, "other weights")
    with pytest.raises(ConfigError, match="stage 'dpo' began with another checkpoint"):
        _trained(CONFIG, run, "dpo", dpo, start)
    write(run, "rl", 5, "weights")
    _trained(CONFIG, run, "dpo", dpo, start)


def test_what_was_left_out_is_looked_at_again_where_it_may_be_otherwise(run: RunDir) -> None:
    start, dpo = write(run, "rl", 5, "weights"), Stage("dpo")
    write_json(run.stage("dpo") / "done.json", {"left_out": "none", "asked": pipeline._mined(CONFIG)})
    with pytest.raises(NothingToRepairError, match=r"^none$"):
        _trained(CONFIG, run, "dpo", dpo, start)
    _trained(load_config("tiny", ["dpo.fresh_prompts=7"]), run, "dpo", dpo, start)
    assert dpo.calls == 1


def test_a_report_is_of_the_checkpoint_and_of_what_is_asked(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def evaluate(config: Config, checkpoint: str) -> Report:
        seen.append(checkpoint)
        return replace(REPORT, pass_at_1=len(seen) / 10)

    monkeypatch.setattr(pipeline, "evaluate_checkpoint", evaluate)
    monkeypatch.setattr(pipeline, "print_report", lambda *_: None)
    path = str(write(run, "rl", 5, "weights"))

    def rate(asked: str) -> Any:
        return _evaluated(CONFIG, run, "rl", path, asked)["pass@1"]

    assert [rate("a"), rate("a"), rate("b"), rate("b")] == [0.1, 0.1, 0.2, 0.2]
    write(run, "rl", 5, "other weights")
    assert rate("b") == 0.3


def test_what_is_asked_is_the_prompts_and_the_settings_of_evaluations() -> None:
    prompts = [Prompt("1", ({"role": "user", "content": "1+1"},), answer="2")]
    other = [replace(prompts[0], answer="3")]
    steps, samples = load_config("tiny", ["rl.steps=3"]), load_config("tiny", ["eval.samples=9"])
    assert _asked(CONFIG, prompts) == _asked(steps, prompts)
    assert len({_asked(CONFIG, prompts), _asked(CONFIG, other), _asked(samples, prompts)}) == 3


def test_an_export_is_in_the_engines_number_format(run: RunDir) -> None:
    base = shutil.copytree(resolve_model("tiny:base"), run.path / "base")
    (base / "manifest.json").write_text("{}")
    _export(base, run.path / "export", "bfloat16")
    ours = AutoModelForCausalLM.from_pretrained(run.path / "export")
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_export_that_is_there_stays_as_it_is(run: RunDir) -> None:
    out, checkpoint = run.path / "export", write(run, "rl", 5, "weights")
    _export(checkpoint, out, "float32")
    (out / "notes.txt").write_text("mine")
    _export(checkpoint, out, "float32")
    assert (out / "notes.txt").read_text() == "mine"
    _export(write(run, "rl", 6, "other weights"), out, "float32")
    assert (out / "model.safetensors").read_text() == "other weights"
    assert json.loads((out / "config.json").read_text()) == {}
    assert sorted(path.name for path in run.path.glob(".export*")) == [".export"]
