"""What a job is told of the directory that it was given in."""

from pathlib import Path

import pytest

from posttrain.ray_job import _absolute, _out_of_the_copy, _without_run


def test_the_run_directory_is_said_once() -> None:
    assert _without_run(["rl", "tiny", "--run", "r", "rl.steps=3"]) == ["rl", "tiny", "rl.steps=3"]
    assert _without_run(["rl", "--run=r", "tiny"]) == ["rl", "tiny"]


def test_what_the_jobs_copy_lacks_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/runs/r").mkdir(parents=True)
    (tmp_path / "here/mine.yaml").touch()
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    words = ["eval", "runs/r", "--config", "mine.yaml", "data.heldout.path=../rows.jsonl", "rl.steps=3", "x" * 5000]
    assert [_absolute(word) for word in words] == [
        "eval", f"{tmp_path}/here/runs/r", "--config", "mine.yaml", f"data.heldout.path={tmp_path}/rows.jsonl",
        "rl.steps=3", "x" * 5000,
    ]  # fmt: skip


def test_what_is_in_the_run_directory_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine/rl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _absolute("mine/rl") == "mine/rl"
    assert _absolute("mine", tmp_path) == "mine"  # as a preset's name may be a folder's
    assert _absolute("mine/rl", tmp_path / "mine") == f"{tmp_path}/mine/rl"
    assert _absolute("mine/rl", tmp_path / "other") == "mine/rl"


def test_what_a_command_writes_is_not_written_into_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "eval",
        "m",
        "--out",
        "report.json",
        "--out=b.json",
        "judge.cache=v.sqlite",
        "judge.cache=null",
        "rl.steps=3",
    ]
    assert _out_of_the_copy(words) == [
        "eval", "m", "--out", f"{tmp_path}/report.json", f"--out={tmp_path}/b.json", f"judge.cache={tmp_path}/v.sqlite",
        "judge.cache=null", "rl.steps=3",
    ]  # fmt: skip
