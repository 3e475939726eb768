"""`posttrain doctor` with a real engine, and the comparison within `posttrain rl`: what is broken is named."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import Config, load_config, resolve_model
from posttrain.doctor import Finding, examine
from posttrain.rl_stage import train_rl
from posttrain.rundir import Manifest, RunDir
from posttrain.sender import Sent
from posttrain.transport import SharedMemory
from rollouts.errors import DriftError
from tests.integration.commands import SMALL, posttrain

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


def drifts(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["drift"] for line in lines if "drift" in line}


def test_rl_stops_when_engines_and_trainer_drift_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From version 2 on the engines keep their old weights and claim the new version."""
    send = SharedMemory.send

    async def stale(self: SharedMemory, version: int) -> Sent:
        return Sent(0.0, 0) if version >= 2 else await send(self, version)

    monkeypatch.setattr(SharedMemory, "send", stale)
    words = ["rl.steps=9", "rl.drift_every=1", "rl.learning_rate=3e-3", "rl.lr_scheduler_type=constant"]
    run = RunDir(tmp_path / "r", load_config("tiny", [*SMALL, *words]))
    with pytest.raises(DriftError) as caught:
        train_rl(run.config, run)
    line, found = str(caught.value), drifts(run.path)
    assert list(found) == [0, 1, 2]
    assert max(found[0], found[1]) < 1e-5
    assert found[2] > 0.001
    (checkpoint,) = run.checkpoints("rl")
    assert Manifest.read(checkpoint).step == 2
    assert "nats apart on average after step 2, more than 0.001 (rl.max_drift); probably weights that an upd" in line
    assert f"they agreed after step 1; {checkpoint} holds the policy" in line
    assert "\n" not in line
