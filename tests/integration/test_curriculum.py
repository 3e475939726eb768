"""A scan of prompts with a real engine, and RL that starts from it, under pools of instructions."""

import json
import sqlite3
from pathlib import Path

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from curricula.buckets import BUCKETS, bucket_of
from curricula.instructions import load_instructions
from posttrain.config import resolve_data, resolve_model
from posttrain.curriculum_log import read_snapshots
from tests.integration.commands import SMALL, Ended, posttrain

WORDS = ["tiny", "--run", "r", *SMALL]


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curriculum")


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
    summary = json.loads((cwd / "r/passk.json").read_text())
    assert summary["all"]["pass@1"] == pytest.approx(rate)
    assert sum(part["prompts"] for part in summary["capabilities"].values()) == 90
    assert 360 < summary["tokens_generated"] < 360 * 48
    assert 0 < summary["seconds"] < 600
    assert f"4 samples of each prompt, {summary['tokens_generated']:,} tokens in " in scanned.err
    for word in ("passk: 360 of 360 sample", "pass@4", *BUCKETS, "tiny/world/base"):
        assert word in scanned.err


def hub(home: Path, name: str, model: str) -> dict[str, str]:
    """The environment in which a name of the hub means a model that is here, as if it had been downloaded before."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("1" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("1" * 40)).symlink_to(model, target_is_directory=True)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def trained(scanned: Ended, cwd: Path) -> Ended:
    """RL from that scan, on a few prompts more, asked under the tiny world's instructions; the model is the hub's."""
    words = ["rl.start_from_scan=r/passk.parquet", "data.instructions.path=tiny:instructions", "model=some/body"]
    env = hub(cwd / "home", "some/body", resolve_model("tiny:base"))
    return posttrain("rl", *WORDS, *words, "rl.steps=2", "data.prompts.limit=100", cwd=cwd, env=env)


def test_rl_starts_from_a_scan(trained: Ended) -> None:
    assert "r/passk.parquet: pass rates of 90 of 100 prompts; the others start unseen" in trained.err


def test_a_draw_is_asked_under_a_trained_instruction_and_recorded_with_it(trained: Ended, cwd: Path) -> None:
    pools = load_instructions(resolve_data("tiny:instructions"))
    texts = {(name, each.instruction_id): each.text for name, pool in pools.items() for each in pool if each.train}
    rows = [row for path in (cwd / "r/rl/rollouts").iterdir() for row in read_table(path).to_pylist()]
    assert {sum(row["draw_id"] == draw_id for row in rows) for draw_id in {row["draw_id"] for row in rows}} == {4}
    for row in rows:
        system, *_ = json.loads(row["messages"])
        assert system == {"role": "system", "content": texts[row["capability"], row["instruction"]]}
    assert len({row["instruction"] for row in rows}) > 3
    with sqlite3.connect(cwd / "r/ledger.db") as ledger:
        drawn = dict(ledger.execute("SELECT draw_id, instruction FROM draws").fetchall())
    assert {row["draw_id"]: row["instruction"] for row in rows}.items() <= drawn.items()
    assert None not in drawn.values()


def test_rl_records_and_draws_its_curriculum(trained: Ended, cwd: Path) -> None:
    rows = read_snapshots(cwd / "r/rl/curriculum.jsonl")
    assert [row.version for row in rows] == [1, 2]
    assert rows[0].buckets["unseen"] < 10  # 90 were scanned
    with Image.open(cwd / "r/rl/curriculum.png") as page:
        assert page.info["Description"].startswith("after step 2: ")
