"""`posttrain doctor` with a real engine: what is broken is named."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import Config, load_config, resolve_model
from posttrain.doctor import Finding, examine
from tests.integration.commands import posttrain

NAMES = ["memory", "disk", "devices", "log-probabilities", "chat template", "end of turn", "weight update"]


def test_the_tiny_preset_passes_every_check(tmp_path: Path) -> None:
    ended = posttrain("doctor", "tiny", "rl.sampling.temperature=0.8", cwd=tmp_path)
    lines = ended.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"ok      {name}" for name in NAMES]
    assert "of 32 prompts" in lines[3]
    assert not (tmp_path / "runs").exists()


def test_a_ray_that_does_not_answer_is_a_failed_check(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        ended = posttrain("doctor", "tiny", cwd=tmp_path, env={"RAY_ADDRESS": address}, code=1)
    assert f"FAILED  devices: RAY_ADDRESS={address}; RAY_ADDRESS={address}: cannot attach" in ended.err
    assert ended.err.splitlines()[-1] == "the checks that need an engine are left out"


@pytest.fixture
def other_eos(tmp_path: Path) -> str:
    """The tiny base with another end of sequence than its chat template's end of turn."""
    model = shutil.copytree(resolve_model("tiny:base"), tmp_path / "model")
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", "<|pad|>"),
        ("generation_config.json", "eos_token_id", 0),
        ("config.json", "eos_token_id", 0),
    ):
        values = json.loads((model / name).read_text())
        assert key in values
        (model / name).write_text(json.dumps(values | {key: value}))
    return str(model)


def examined(config: Config, folder: Path, **changes: Any) -> dict[str, Finding]:
    found = examine(config, resolve_model(config.model), folder, **changes)
    assert [finding.name for finding in found] == NAMES
    return {finding.name: finding for finding in found}


def test_each_check_names_its_own_cause(other_eos: str, tmp_path: Path) -> None:
    """Three things are wrong at once: top-p, the end of turn, and an engine that keeps its old weights."""

    asked = []

    async def skipped(engine: Any, path: str, version: int) -> None:
        asked.append(version)

    words = [f"model={other_eos}", "rl.sampling.top_p=0.5", "rl.sampling.max_tokens=24"]
    found = examined(load_config("tiny", words), tmp_path / "r", load=skipped)
    assert asked == [1]
    assert [name for name in NAMES if not found[name].ok] == ["log-probabilities", "end of turn", "weight update"]
    assert found["log-probabilities"].cause.startswith("rl.sampling.top_p=0.5: the engine renormalizes")
    assert found["weight update"].cause == "stale weights: the update left the engine's weights as they were"
    assert "ends a turn with <|end|> (token 5), the engine stops at <|pad|>" in found["end of turn"].cause
