"""What `posttrain ledger` says, and what its audit finds when a record is doctored."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.audit import audit
from posttrain.ledger import Ledger, Watermark
from posttrain.ledger_report import print_audit, print_ledger
from posttrain.rl_state import shards, standing_checkpoint
from rollouts.errors import DataError
from tests.posttrain.lineages import write_checkpoint, write_run

SHARD = "rl/rollouts/attempt-001-step-000001.parquet"
LOG = "rl/checkpoints/step-000002/trained.parquet"
STATE = "rl/checkpoints/step-000002/rl_state.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "r")


def doctor(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Changes the rows of a Parquet file."""
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def edit(run: Path, statement: str) -> None:
    """Changes the ledger."""
    with sqlite3.connect(run / "ledger.db") as ledger:
        ledger.execute(statement)


def test_three_records_that_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit(run)
    assert (found.step, found.draws, found.trained, found.rejected, found.pending) == (2, 6, 3, 1, 2)
    assert found.problems == ()
    assert print_audit(run)
    said = "6 draws up to step 2: 3 trained, 1 rejected, 2 pending; each exactly once, in ledger, shards and trainer"
    assert said in capsys.readouterr().out


def test_what_comes_after_the_checkpoint_does_not_count(run: Path) -> None:
    ledger = Ledger(run / "ledger.db")
    ledger.drawn(6, "p6", "math", 2)
    ledger.judged(5, "rejected", "all_solved", 2, 2, 12)
    ledger.trained([4], 3)
    ledger.close()
    assert audit(run).problems == ()
    ledger = Ledger(run / "ledger.db")
    state = json.loads((run / STATE).read_text())
    ledger.begin(2, Watermark.from_json(state["watermark"]))
    ledger.close()
    assert audit(run).problems == ()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM draws WHERE draw_id = 2", "draw 2: skipped; the ledger has no row"),
        ("DELETE FROM draws WHERE draw_id = 5", "draw 5: skipped; the ledger has no row"),
        ("UPDATE draws SET solved = 2 WHERE draw_id = 3", "draw 3: solved 2 in the ledger, 1 in the shards"),
        ("UPDATE draws SET prompt_id = 'p9' WHERE draw_id = 0", "draw 0: prompt p9 in the ledger, p0 in"),
        ("UPDATE draws SET tokens = 9 WHERE draw_id = 3", "draw 3: tokens 9 in the ledger, 8 in the shards"),
        ("UPDATE draws SET capability = 'code' WHERE draw_id = 0", "draw 0: capability code in the ledger, math in"),
        ("UPDATE draws SET instruction = 'x' WHERE draw_id = 2", "draw 2: instruction x in the ledger, None in"),
        ("UPDATE draws SET version = 0 WHERE draw_id = 3", "draw 3: version 0 in the ledger, 1 in the shards"),
        ("UPDATE draws SET reason = 'all_solved' WHERE draw_id = 2",
         "draw 2: rejected (all_solved), which 0 solved of 2 rule out"),
        ("UPDATE draws SET reason = 'judge' WHERE draw_id = 2", "draw 2: rejected (judge), which 0 solved of 2"),
        ("UPDATE draws SET reason = 'stale' WHERE draw_id = 2", "none_solved: 0 draws in the ledger, 1 by the loop's"),
        ("UPDATE draws SET reason = 'truncated' WHERE draw_id = 2", "draw 2: rejected (truncated), which 0 solved"),
        ("UPDATE draws SET reason = NULL WHERE draw_id = 2", "draw 2: rejected, which 0 solved of 2 rule out"),
        ("UPDATE draws SET reason = 'stale' WHERE draw_id = 0", "draw 0: trained (stale) in step 1, which 1 solved"),
        ("UPDATE draws SET step = 1 WHERE draw_id = 2", "draw 2: rejected (none_solved) in step 1, which"),
        ("UPDATE draws SET state = 'admitted' WHERE draw_id = 2", "draw 2: admitted in the ledger, but not pending"),
        ("UPDATE draws SET state = 'drawn' WHERE draw_id = 4", "draw 4: the ledger has other values than"),
        ("UPDATE draws SET state = 'rejected', reason = 'stale' WHERE draw_id = 4",
         "draw 4: the ledger has other values than the checkpoint, where it is pending"),
        ("UPDATE draws SET instruction = 'x' WHERE draw_id = 5", "draw 5: the ledger has other values than"),
        ("UPDATE draws SET capability = 'code', change = 99 WHERE draw_id = 5",
         "draw 5: the ledger has other values than the checkpoint, where it is pending"),
        ("UPDATE draws SET rollouts = 3 WHERE draw_id = 1", "draw 1: 3 rollouts in the ledger, [0, 1] in the shards"),
        ("UPDATE draws SET step = 2 WHERE draw_id = 1", "draw 1: trained in step 1 by the trainer alone"),
        ("UPDATE draws SET state = 'rejected' WHERE draw_id = 3", "draw 3: trained in step 2 by the trainer alone"),
        ("UPDATE draws SET state = 'trained', step = 1 WHERE draw_id = 2", "draw 2: trained in step 1 by the ledger"),
        ("UPDATE draws SET change = 99 WHERE draw_id = 0", "draw 0: the ledger changed it after the checkpoint"),
        ("UPDATE draws SET voided_by = 2 WHERE draw_id = 1", "draw 1: skipped; the ledger has no row"),
    ],
)  # fmt: skip
def test_a_doctored_ledger_is_found(run: Path, statement: str, problem: str) -> None:
    edit(run, statement)
    assert any(line.startswith(problem) for line in audit(run).problems), audit(run).problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[2:], "draw 0: trained in the ledger, but in no shard"),
        (lambda rows: rows[1:], "draw 0: 2 rollouts in the ledger, [1] in the shards"),
        (lambda rows: [*rows, rows[0]], "draw 0: 2 rollouts in the ledger, [0, 0, 1] in the shards"),
        (lambda rows: [{**rows[0], "outcome": False}, *rows[1:]], "draw 0: solved 1 in the ledger, 0 in"),
        (lambda rows: [{**rows[0], "token_ids": [6]}, *rows[1:]], "draw 0: trained on other tokens than those in"),
        (lambda rows: [*rows[:3], {**rows[3], "prompt_token_ids": [2]}, *rows[4:]],
         "draw 1: trained on other tokens than those in the shards"),
        (lambda rows: [{**rows[1], "rollout": 0, "token_ids": [7]}, {**rows[0], "rollout": 1}, *rows[2:]],
         "draw 0: trained on other tokens than those in the shards"),
        (lambda rows: [{**rows[0], "capability": "code"}, *rows[1:]],
         "draw 0: capability math in the ledger, code and math in the shards"),
        (lambda rows: [{**row, "version": 1} for row in rows], "draw 0: version 0 in the ledger, 1 in the shards"),
        (lambda rows: [{**rows[0], "last_version": 1}, *rows[1:]],
         "draw 0: drawn at version 0, trained in step 1, but its tokens are of versions 0 to 1"),
        (lambda rows: [{**row, "draw_id": 7} if row["draw_id"] == 2 else row for row in rows],
         "draw 7: in a shard, but not in the ledger"),
    ],
)  # fmt: skip
def test_a_doctored_shard_is_found(run: Path, change: Callable[[Any], Any], problem: str) -> None:
    doctor(run / SHARD, change)
    assert any(line.startswith(problem) for line in audit(run).problems), audit(run).problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1:], "draw 0: trained in step 1 by the ledger alone"),
        (lambda rows: [*rows, rows[0]], "draw 0: trained 2 times"),
        (lambda rows: [{**rows[0], "tokens": 3}, *rows[1:]], "draw 0: 3 tokens trained, 2 in the shards"),
        (lambda rows: [{**rows[0], "digest": "0" * 16}, *rows[1:]], "draw 0: trained on other tokens than those in"),
        (lambda rows: [*rows, {"step": 3, "draw_id": 4, "tokens": 10}], "step 3: trained, but past the checkpoint's 2"),
    ],
)
def test_a_doctored_log_of_the_trainer_is_found(run: Path, change: Callable[[Any], Any], problem: str) -> None:
    doctor(run / LOG, change)
    assert any(line.startswith(problem) for line in audit(run).problems), audit(run).problems


def test_records_of_an_older_version_are_compared_as_far_as_they_go(run: Path) -> None:
    """Its log had no digests, its shards no versions of draws."""
    for path, gone in ((run / LOG, "digest"), (run / SHARD, "version")):
        pq.write_table(pq.read_table(path).drop_columns([gone]), path)
    assert audit(run).problems == ()
    edit(run, "UPDATE draws SET version = 1 WHERE draw_id = 0")
    assert audit(run).problems == (
        "draw 0: drawn at version 1, trained in step 1, but its tokens are of versions 0 to 0",
    )  # fmt: skip


def test_groups_with_equal_outcomes_may_be_stale_where_they_are_trained_on_too(tmp_path: Path) -> None:
    found = []
    for draw in (0, 1):
        run = write_run(tmp_path / f"{draw}")
        edit(run, "UPDATE draws SET reason = 'stale' WHERE draw_id = 2")
        edit(run, f"UPDATE draws SET solved = 2 * {draw} WHERE draw_id = 0")
        found.append(any("rule out" in line for line in audit(run).problems))
    assert found == [False, False]
    run = write_run(tmp_path / "gated")
    edit(run, "UPDATE draws SET reason = 'stale' WHERE draw_id = 2")
    assert audit(run).problems[0] == "draw 2: rejected (stale), which 0 solved of 2 rule out"


def one_step_on(run: Path) -> tuple[Ledger, Watermark, Path]:
    """The ledger of a run after one step more, where it stood before, and the checkpoint of that step."""
    ledger = Ledger(run / "ledger.db")
    early = ledger.watermark(6)
    ledger.judged(5, "rejected", "all_solved", 2, 2, 12)
    ledger.drawn(6, "p6", "math", 2)
    return ledger, early, write_checkpoint(run, 3, (), ledger.watermark(7))


def test_a_checkpoint_that_the_run_has_gone_on_without_is_not_its_newest(run: Path) -> None:
    """As a resume leaves it that is killed before it has put the later checkpoints aside."""
    ledger, early, later = one_step_on(run)
    assert standing_checkpoint(run) == later
    ledger.begin(2, early)
    ledger.close()
    assert standing_checkpoint(run) == run / "rl/checkpoints/step-000002"
    assert (audit(run).step, audit(run).problems) == (2, ())
    assert len(shards(run)) == 2


def test_a_resume_that_is_killed_before_the_ledger_knows_of_it_leaves_no_problem(run: Path) -> None:
    """It puts the later checkpoints aside first, so the run goes on from the same one again."""
    ledger, early, later = one_step_on(run)
    later.rename(later.with_name("step-000003-given-up"))
    assert standing_checkpoint(run) == run / "rl/checkpoints/step-000002"
    assert (audit(run).step, audit(run).problems) == (2, ())
    assert ledger.begin(2, early) == 1


def test_a_missing_shard_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / SHARD).unlink()
    assert not print_audit(run)
    said = capsys.readouterr().out
    assert f"{SHARD}: missing; the checkpoint counts on it" in said
    assert "4 problems in 6 draws up to step 2" in said


def test_shards_of_a_future_that_was_given_up_are_not_the_runs(run: Path) -> None:
    other = run / "rl/rollouts/attempt-001-step-000009.parquet"
    other.write_bytes((run / SHARD).read_bytes())
    assert [path.name for path in shards(run)] == [
        "attempt-001-step-000001.parquet", "attempt-001-step-000002.parquet",
    ]  # fmt: skip
    assert audit(run).problems == ()


def test_counts_and_attempts_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(run, None, None)
    lines = [line.strip("│┃ ") for line in capsys.readouterr().out.splitlines()]
    assert "rejected(none_solved) │     1" in lines
    assert "trained               │     3" in lines
    assert lines[-1] == "attempt 1: from the start"


def test_draws_of_a_prompt_and_of_a_step_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(run, "p2", None)
    said = capsys.readouterr().out
    assert said == "draw 2  prompt p2  math  version 0  rejected (none_solved)  0 of 2 solved, 6 tokens\n"
    print_ledger(run, None, 1)
    said = capsys.readouterr().out
    assert said.splitlines()[1] == "draw 1  prompt p1  math  version 0  trained in step 1  1 of 2 solved, 4 tokens"
    assert len(said.splitlines()) == 2
    with pytest.raises(DataError, match="no draw of step = 7"):
        print_ledger(run, None, 7)


def test_a_run_without_records_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no ledger \(ledger.db\); `posttrain rl` writes it"):
        print_ledger(tmp_path, None, None)
    with pytest.raises(DataError, match="no RL checkpoint with a ledger"):
        audit(tmp_path)
