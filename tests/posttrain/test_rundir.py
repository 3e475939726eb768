"""Checkpoints are complete or absent, old ones go, damage is told."""

import hashlib
import json
from pathlib import Path

import pytest

from posttrain.adapters import merged_path
from posttrain.config import config_hash, load_config, resolve_model
from posttrain.rundir import Manifest, RunDir, check_model, write_json
from rollouts.errors import CheckpointError

CONFIG = load_config("tiny")
BASE = resolve_model("tiny:base")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r", CONFIG)


def checkpoint(run: RunDir, step: int, stage: str = "rl", keep: int = 10, text: str = "weights") -> Path:
    with run.new_checkpoint(stage, step, "the parent", keep) as directory:
        (directory / "model.safetensors").write_text(text)
        (directory / "optimizer").mkdir()
        (directory / "optimizer/state").write_text("state")
    return run.path / stage / "checkpoints" / f"step-{step:06d}"


def test_a_file_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ü": 1})
    assert json.loads(path.read_text()) == {"ü": 1}
    with pytest.raises(TypeError):
        write_json(path, {"half": 1, "bad": object()})
    assert json.loads(path.read_text()) == {"ü": 1}


def test_a_manifest_says_where_a_checkpoint_comes_from(run: RunDir) -> None:
    manifest = Manifest.read(checkpoint(run, 25))
    assert (manifest.stage, manifest.step, manifest.policy_version, manifest.parent) == ("rl", 25, 25, "the parent")
    assert manifest.config_hash == config_hash(CONFIG)
    assert set(manifest.files) == {"model.safetensors", "optimizer/state"}
    assert manifest.files["optimizer/state"] == hashlib.sha256(b"state").hexdigest()


def test_an_error_while_writing_leaves_nothing(run: RunDir) -> None:
    first = checkpoint(run, 1)

    def fail() -> None:
        with run.new_checkpoint("rl", 2, "p", 5) as directory:
            (directory / "half").write_text("…")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert run.checkpoints("rl") == [first]
    assert [path.name for path in (run.path / "rl/checkpoints").iterdir()] == ["step-000001"]


def test_a_directory_without_a_manifest_is_no_checkpoint(run: RunDir) -> None:
    whole = checkpoint(run, 3)
    for name in ("step-000009", ".step-000010.tmp", "step-000011-old", "step-x"):
        (run.path / "rl/checkpoints" / name).mkdir()
    (run.path / "rl/checkpoints/step-000011-old/manifest.json").write_text("{}")
    assert run.checkpoints("rl") == [whole]
    assert run.newest("rl") == whole
    assert run.newest("dpo") is None


def test_checkpoints_are_ordered_by_step_and_the_oldest_go(run: RunDir) -> None:
    for step in (999_999, 7, 1_000_000):
        checkpoint(run, step, keep=3)
    assert [path.name for path in run.checkpoints("rl")] == ["step-000007", "step-999999", "step-1000000"]
    checkpoint(run, 1_000_001, keep=2)
    assert [path.name for path in run.checkpoints("rl")] == ["step-1000000", "step-1000001"]


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(run: RunDir) -> None:
    checkpoint(run, 1)
    path = checkpoint(run, 1, text="newer weights")
    assert (path / "model.safetensors").read_text() == "newer weights"
    Manifest.read(path)


def test_later_checkpoints_than_the_one_to_go_on_from_are_given_up(run: RunDir) -> None:
    paths = [checkpoint(run, step) for step in (25, 50, 75)]
    run.give_up_after(paths[0])
    assert run.newest("rl") == paths[0]
    assert (paths[2].with_name("step-000075-given-up") / "model.safetensors").read_text() == "weights"
    again = checkpoint(run, 75, keep=2, text="other")  # and none that was given up makes a new one go
    assert run.checkpoints("rl") == [paths[0], again]
    run.give_up_after(paths[0])
    assert (paths[2].with_name("step-000075-given-up") / "model.safetensors").read_text() == "other"


def test_what_was_merged_from_a_checkpoint_goes_with_it(run: RunDir) -> None:
    merged = merged_path(checkpoint(run, 1))
    merged.mkdir()
    checkpoint(run, 1, text="newer weights")
    assert not merged.exists()
    merged.mkdir()
    checkpoint(run, 2, keep=1)
    assert not merged.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "optimizer/state").write_text("STATE"), r"damaged checkpoint \(optimizer/state has chan"),
        (lambda path: (path / "optimizer/state").unlink(), r"incomplete checkpoint \(optimizer/state is missing\)"),
        (lambda path: (path / "manifest.json").unlink(), r"incomplete checkpoint \(no manifest.json\)"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json: not a manifest: "),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json: not a manifest: "),
    ],
)
def test_damage_is_told(run: RunDir, damage, message: str) -> None:
    path = checkpoint(run, 4)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        run.resume_point("rl", str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_a_stage_starts_and_goes_on(run: RunDir) -> None:
    assert run.start_of("sft", BASE) == run.start_of("dpo", BASE) == BASE
    assert run.resume_point("rl", "auto") is None  # nothing to continue: from the start
    sft, rl = checkpoint(run, 8, "sft"), checkpoint(run, 2, "rl")
    assert run.start_of("rl", BASE) == str(sft)
    assert run.start_of("dpo", BASE) == str(rl)
    assert run.resume_point("rl", "auto") == rl
    assert run.resume_point("rl", None) is None
    with pytest.raises(CheckpointError, match="a checkpoint of stage 'sft', not 'rl'"):
        run.resume_point("rl", str(sft))


def test_no_stage_goes_on_from_a_checkpoint_of_another_run(run: RunDir, tmp_path: Path) -> None:
    (other := RunDir(tmp_path / "elsewhere", CONFIG)).stage("rl").rename(tmp_path / "disk")
    (other.path / "rl").symlink_to(tmp_path / "disk")
    path = checkpoint(other, 2)
    assert other.resume_point("rl", str(path)) == path
    with pytest.raises(CheckpointError) as refused:
        run.resume_point("rl", str(path))
    assert str(refused.value) == (
        f"{path}: a checkpoint of another run than {run.path}; name that one by --run, or start a new run with "
        f"model={path}"
    )


def test_settings_are_written_over_only_when_a_stage_begins(run: RunDir) -> None:
    other = RunDir(run.path, load_config("tiny", ["seed=5"]))
    assert json.loads((run.path / "config.json").read_text())["seed"] == 0
    other.save_config()
    assert json.loads((run.path / "config.json").read_text())["seed"] == 5


def test_a_hub_name_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which else tries for 20 seconds
    with pytest.raises(
        CheckpointError, match=r"^nobody/nothing: .*; expected a model directory, or a hub name"
    ) as found:
        check_model("nobody/nothing")
    assert "\n" not in str(found.value)
