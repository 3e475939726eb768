"""Rollouts on disk and back."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from rollouts.recorder import read_groups, read_shards, write_rows, write_shard
from rollouts.types import Prompt, Rollout, RolloutGroup

PROMPT = Prompt(
    "9f", ({"role": "system", "content": "Kürzer!"}, {"role": "user", "content": "47+38"}), "math", instruction="short"
)


def group(draw: int) -> RolloutGroup:
    first = Rollout(
        [7, 9, 5], [True, False, True], [-0.125, 0.0, -1.5], [(0, 1, 3), (1, 3, 4)], "stop", "85 ✓", 1.0, True
    )
    second = Rollout([5], [True], [-2.0], [(0, 1, 4)], "length", "", 0.0, False, {}, "truncated")
    return RolloutGroup(draw, PROMPT, [1, 2], [first, second])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new/shard.parquet"
    assert write_shard(path, [group(17), group(18)]) == 4
    rows = read_shards([path])
    assert [(row["draw_id"], row["rollout"]) for row in rows] == [(17, 0), (17, 1), (18, 0), (18, 1)]
    first, second = rows[:2]
    assert json.loads(first["messages"]) == list(PROMPT.messages)
    assert (first["prompt_id"], first["capability"], first["text"]) == ("9f", "math", "85 ✓")
    assert first["instruction"] == "short"
    assert (first["token_ids"], first["loss_mask"], first["logprobs"]) == (
        [7, 9, 5], [True, False, True], [-0.125, 0.0, -1.5],
    )  # fmt: skip
    assert (first["prompt_token_ids"], first["policy_versions"]) == ([1, 2], [[0, 1, 3], [1, 3, 4]])
    assert (first["first_version"], first["last_version"], second["first_version"]) == (3, 4, 4)
    assert (first["reward"], first["outcome"], second["outcome"]) == (1.0, True, False)
    assert (second["finish_reason"], second["reason"]) == ("length", "truncated")


def test_shards_are_read_in_the_order_given(tmp_path: Path) -> None:
    paths = [tmp_path / f"{draw}.parquet" for draw in (2, 1)]
    for draw, path in zip((2, 1), paths, strict=True):
        write_shard(path, [group(draw)])
    assert [row["draw_id"] for row in read_shards(paths)] == [2, 2, 1, 1]
    assert read_shards([]) == []


def test_groups_are_read_back_from_shards_that_differ_in_what_is_null(tmp_path: Path) -> None:
    plain = replace(group(1), prompt=replace(PROMPT, instruction=None), version=3)
    asked = replace(group(2), version=4)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, each in zip(paths, (plain, asked), strict=True):
        write_shard(path, [each])
    assert read_groups(paths, {1: plain.prompt, 2: PROMPT}) == {1: plain, 2: asked}
    loaded = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in paths], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["instruction"][:] == [None, None, "short", "short"]


def test_shards_of_an_older_version_are_read_with_others(tmp_path: Path) -> None:
    """Their types were found by their values, and they do not know the version of a draw."""
    plain, asked = replace(group(1), prompt=replace(PROMPT, instruction=None)), group(2)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, each in zip(paths, (plain, asked), strict=True):
        write_shard(path, [each])
        rows = [{name: row[name] for name in row if name != "version"} for row in read_shards([path])]
        write_rows(path, rows)
    assert pq.read_schema(paths[0]).field("instruction").type == "null"
    write_shard(tmp_path / "c.parquet", [replace(group(3), version=5)])
    found = read_groups([*paths, tmp_path / "c.parquet"], {1: plain.prompt, 2: None, 3: PROMPT})
    assert (found[1], found[3]) == (plain, replace(group(3), version=5))
    assert (found[2].prompt, found[2].rollouts) == (PROMPT, asked.rollouts)


def test_a_shard_is_what_datasets_loads(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [group(1)])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["token_ids"][:] == [[7, 9, 5], [5]]


def test_nothing_is_no_file_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert write_shard(path, []) == 0
    assert not path.exists()
    write_rows(path, [{"n": 1}])
    with pytest.raises(Exception, match="object"):  # Arrow has no type for it
        write_rows(path, [{"n": object()}])
    assert read_shards([path]) == [{"n": 1}]
    assert [each.name for each in tmp_path.iterdir()] == ["a.parquet"]


def test_a_file_has_its_name_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is itself on the disk counts on it."""
    found: list[list[dict[str, int]]] = []

    def synced(_: int) -> None:
        (path,) = tmp_path.iterdir()
        assert path.name != "a.parquet"
        found.append(pq.read_table(path).to_pylist())

    monkeypatch.setattr("os.fsync", synced)
    write_rows(tmp_path / "a.parquet", [{"n": 1}])
    assert found == [[{"n": 1}]]
