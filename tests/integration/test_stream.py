"""RL on a generator without an end, with a real engine, stopped and resumed."""

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from posttrain.audit import audit
from posttrain.curriculum_log import read_snapshots
from posttrain.ledger import DrawRow, Ledger
from posttrain.rl_state import UNDER_WAY, RLState
from tests.integration.commands import SMALL, Ended, Running, posttrain

SOURCE = """
import random
from itertools import count

from posttrain.tiny.data import prompt_row
from posttrain.tiny.tasks import draw_problem
from posttrain.tiny.writing import RL_INSTRUCTIONS


def rows():
    rng = random.Random(7)
    for number in count():
        row = prompt_row(draw_problem(rng, ("math", "code")[number % 2], 2 + number % 3), rng.choice(RL_INSTRUCTIONS))
        yield {**row, "number": number}
"""
WORDS = [
    "rl", "tiny", "--run", "r", *SMALL, "data.prompts.path=problems:rows", "data.prompts.window=48",
    "rl.quotas={math: 1, code: 1}",    "rl.selection=uniform", "rl.max_staleness=2", "rl.checkpoint_every=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("stream")
    (found / "problems.py").write_text(SOURCE)
    return found


@pytest.fixture(scope="module")
def stopped(cwd: Path) -> Ended:
    running = Running(*WORDS, "rl.steps=1000", cwd=cwd)
    try:
        running.wait_for("step    3  reward")
        running.interrupt()
        return running.ended(60)
    finally:
        running.end()


def newest(cwd: Path) -> Path:
    return max((cwd / "r/rl/checkpoints").glob("step-??????"))


def test_a_run_says_how_it_reads_and_its_checkpoint_holds_the_window(stopped: Ended, cwd: Path) -> None:
    assert stopped.code == 130, stopped.err
    assert "problems:rows: read as it is needed, at most 48 prompts at a time; 36 prompts (" in stopped.err
    place, *prompts = (newest(cwd) / "window.jsonl").read_text().splitlines()
    assert '"source": "problems:rows"' in place
    assert 36 <= len(prompts) <= 48


@pytest.fixture(scope="module")
def draws(stopped: Ended, cwd: Path) -> list[DrawRow]:
    """All of the draws that count, once the run has gone on for five steps more."""
    checkpoint = newest(cwd)
    pending = RLState.read(checkpoint).watermark.pending
    step = int(checkpoint.name.removeprefix("step-"))
    path = checkpoint / UNDER_WAY  # none where all that was drawn had been judged
    rollouts = pq.read_table(path, columns=["draw_id", "token_ids"]).to_pylist() if path.is_file() else []
    under_way = {rollout["draw_id"] for rollout in rollouts if rollout["token_ids"]}
    ended = posttrain(*WORDS, f"rl.steps={step + 5}", "--resume", "auto", cwd=cwd)
    admitted = sum(row.state == "admitted" for row in pending)
    said = re.search(
        r"; (\d+) groups wait to be trained, (\d+) draws go on where they stood, (\d+) are made again\n", ended.err
    )
    assert said is not None  # none of them is gone
    waiting, begun, again = map(int, said.groups())
    assert (waiting, begun + again) == (admitted, len(pending) - admitted)
    assert begun == len(under_way)
    rows = Ledger(cwd / "r/ledger.db", read_only=True).rows("voided_by IS NULL")
    assert Counter(row.step for row in rows if row.step) == dict.fromkeys(range(1, step + 6), 6)
    return rows


def test_a_resumed_run_draws_each_prompt_once(draws: list[DrawRow], cwd: Path) -> None:
    assert audit(cwd / "r").problems == ()
    assert [row.draw_id for row in draws] == list(range(len(draws)))
    assert {row.attempt for row in draws} == {1, 2}
    assert max(Counter(row.prompt_id for row in draws).values()) == 1
    assert {row.capability for row in draws} == {"math", "code"}


def test_the_curriculum_is_recorded_of_the_window(draws: list[DrawRow], cwd: Path) -> None:
    snapshots = read_snapshots(cwd / "r/rl/curriculum.jsonl")
    assert [row.version for row in snapshots] == list(range(1, max(row.step or 0 for row in draws) + 1))
    assert {sum(row.buckets.values()) for row in snapshots} == {36}
