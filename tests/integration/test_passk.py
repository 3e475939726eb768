"""A scan of prompts with a real engine, and RL that starts from it."""

from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from curricula.buckets import BUCKETS, bucket_of
from tests.integration.commands import SMALL, Ended, posttrain

WORDS = ["tiny", "--run", "r", *SMALL]


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("passk")


@pytest.fixture(scope="module")
def scanned(cwd: Path) -> Ended:
    """`posttrain passk` of the base model, on more prompts than an engine is given at a time."""
    return posttrain("passk", *WORDS, "--samples", "4", "--k", "1,4", "data.prompts.limit=90", cwd=cwd)


def test_a_scan_has_a_row_for_each_prompt(scanned: Ended, cwd: Path) -> None:
    assert Path(scanned.out.strip()) == cwd / "r/passk.parquet"
    rows = read_table(cwd / "r/passk.parquet").to_pylist()
    assert len({row["prompt_id"] for row in rows}) == len(rows) == 90
    assert {row["capability"] for row in rows} == {"math", "reasoning", "code"}
    assert {row["source"] for row in rows} == {"rl.jsonl"}
    for row in rows:
        assert row["samples"] == 4
        assert row["pass_rate"] == row["solved"] / 4
        assert row["bucket"] == bucket_of(row["pass_rate"])
    rate = sum(row["pass_rate"] for row in rows) / 90
    assert 0.1 < rate < 0.7  # the base solves some
    assert f"{rate:.3f}" in scanned.err  # pass@1 of all
    for word in ("passk: 360 of 360 sample", "pass@4", *BUCKETS, "tiny/world/base"):
        assert word in scanned.err


def test_a_second_scan_does_not_write_over_the_first(scanned: Ended, cwd: Path) -> None:
    before = (cwd / "r/passk.parquet").read_bytes()
    ended = posttrain("passk", *WORDS, cwd=cwd, code=2)
    assert ended.line().endswith("r/passk.parquet: exists already, and is not written over; name another file with "
                                 "--out, or remove it")  # fmt: skip
    assert (cwd / "r/passk.parquet").read_bytes() == before


def test_rl_starts_from_a_scan(scanned: Ended, cwd: Path) -> None:
    scan = "rl.start_from_scan=r/passk.parquet"
    ended = posttrain("rl", *WORDS, scan, "rl.steps=1", "data.prompts.limit=100", cwd=cwd)
    assert "r/passk.parquet: pass rates of 90 of 100 prompts; the others start unseen" in ended.err
