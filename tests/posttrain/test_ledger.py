"""The ledger's rows, over attempts."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from posttrain.ledger import DrawRow, Ledger, Watermark
from posttrain.rl_state import LEDGER, standing_checkpoint
from rollouts.errors import CheckpointError, ConfigError


def opened(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.begin(0, Watermark())
    return ledger


def fill(ledger: Ledger) -> None:
    """Five draws: two trained in steps 1 and 2, one rejected, one admitted, one under way."""
    for draw_id in range(5):
        ledger.drawn(draw_id, f"p{draw_id}", "math", 3, f"i{draw_id}" if draw_id else None)
    for draw_id in (0, 1, 3):
        ledger.judged(draw_id, "admitted", None, 1, 4, 100)
    ledger.judged(2, "rejected", "none_solved", 0, 4, 80)
    ledger.trained([0], 1)
    ledger.trained([1], 2)


def test_states_are_counted_by_reason(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    assert ledger.counts() == {}
    fill(ledger)
    assert ledger.counts() == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 1, "trained": 2}


def test_what_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database" * 1000)
    with pytest.raises(ConfigError, match=r"x\.db: no ledger that can be read: file is not a database$"):
        Ledger(tmp_path / "x.db", read_only=True)


def test_a_ledger_is_read_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    ledger.close()
    asked = []
    connect = sqlite3.connect
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setattr(sqlite3, "connect", lambda name, **more: asked.append(name) or connect(name, **more))
    assert len(Ledger(tmp_path / "x.db", read_only=True).rows()) == 5
    assert asked[0].endswith("x.db?immutable=1")


def test_a_row_keeps_what_was_said_of_it(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    ledger.close()
    rows = Ledger(tmp_path / "x.db", read_only=True).rows()
    assert rows[1] == DrawRow(1, 1, "p1", "math", "i1", 3, "trained", None, 1, 4, 100, 2, 11, None)
    assert rows[2] == DrawRow(1, 2, "p2", "math", "i2", 3, "rejected", "none_solved", 0, 4, 80, None, 9, None)
    assert rows[4] == DrawRow(1, 4, "p4", "math", "i4", 3, "drawn", None, None, None, None, None, 5, None)


def test_a_draw_is_entered_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    ledger.drawn(0, "p", "math", 0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.drawn(0, "p", "math", 0)


def test_nothing_is_committed_between_step_boundaries(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    ledger.drawn(5, "p5", "math", 4)
    with sqlite3.connect(tmp_path / "x.db") as other:
        assert other.execute("SELECT count(*) FROM draws").fetchone() == (5,)
    ledger.close()
    with sqlite3.connect(tmp_path / "x.db") as other:
        assert other.execute("SELECT count(*) FROM draws").fetchone() == (6,)


def test_a_checkpoint_keeps_what_is_pending(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    mark = ledger.watermark(next_draw=5)
    assert (mark.attempt, mark.change, mark.next_draw) == (1, 11, 5)
    assert [(row.draw_id, row.state) for row in mark.pending] == [(3, "admitted"), (4, "drawn")]
    assert Watermark.from_json(json.loads(json.dumps(mark.as_json()))) == mark


def after_the_checkpoint(ledger: Ledger) -> None:
    """What the run did until it was killed: nothing of it may count."""
    ledger.judged(4, "rejected", "all_solved", 4, 4, 60)
    ledger.drawn(5, "p5", "math", 4)
    ledger.drawn(6, "p6", "math", 4)
    ledger.judged(5, "admitted", None, 2, 4, 90)
    ledger.trained([3, 5], 3)


def test_a_resume_voids_what_came_after_the_checkpoint_and_takes_up_what_was_pending(tmp_path: Path) -> None:
    first = opened(tmp_path / "x.db")
    fill(first)
    mark = first.watermark(next_draw=5)
    after_the_checkpoint(first)
    first.close()
    second = Ledger(tmp_path / "x.db")
    assert second.begin(2, mark) == 2  # draws 5 and 6
    assert second.attempt == 2
    assert second.attempts() == [(1, 0, 0), (2, 2, 11)]
    assert second.counts() == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 1, "trained": 2, "void": 2}
    again = second.rows("voided_by IS NULL AND draw_id > 2")
    assert [(row.draw_id, row.state, row.solved, row.tokens, row.step) for row in again] == [
        (3, "admitted", 1, 100, None), (4, "drawn", None, None, None),
    ]  # fmt: skip
    # The next draws have the ids that the void ones had; those keep what they were.
    second.drawn(5, "q5", "math", 2)
    second.trained([3, 5], 3)
    assert [(row.attempt, row.prompt_id, row.state, row.voided_by) for row in second.rows("draw_id = 5")] == [
        (1, "p5", "trained", 2), (2, "q5", "trained", None),
    ]  # fmt: skip


def test_resuming_twice_from_one_checkpoint_is_as_resuming_once(tmp_path: Path) -> None:
    first = opened(tmp_path / "x.db")
    fill(first)
    mark = first.watermark(next_draw=5)
    after_the_checkpoint(first)
    first.close()
    for _ in range(2):
        ledger = Ledger(tmp_path / "x.db")
        ledger.begin(2, mark)
        live = {name: count for name, count in ledger.counts().items() if name != "void"}
        assert live == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 1, "trained": 2}
        after_the_checkpoint(ledger)
        ledger.close()


def test_a_checkpoint_that_was_given_up_is_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    early = ledger.watermark(next_draw=5)
    after_the_checkpoint(ledger)
    late = ledger.watermark(next_draw=7)
    assert ledger.begin(3, late) == 0  # the newest: nothing is void
    ledger.begin(2, early)
    with pytest.raises(CheckpointError, match=r"step 3 was given up when the run went on from step 2 \(attempt 3\)"):
        ledger.begin(3, late)
    ledger.begin(2, early)  # as often as wanted


def test_a_run_that_begins_anew_voids_everything(tmp_path: Path) -> None:
    first = opened(tmp_path / "x.db")
    fill(first)
    first.close()
    second = opened(tmp_path / "x.db")
    assert second.counts() == {"void": 5}
    fill(second)
    assert second.counts() == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 1, "trained": 2, "void": 5}


def test_pass_rates_are_those_of_judged_groups(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "x.db")
    fill(ledger)
    ledger.judged(4, "rejected", "judge", 0, 0, 0)  # no verdict, so no pass rate
    assert sorted(ledger.pass_rates()) == [0.0, 0.25, 0.25, 0.25]


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as other:
        other.execute("CREATE TABLE draws (draw_id INTEGER)")
    with pytest.raises(ConfigError, match="a ledger of another version of posttrain; choose another --run"):
        Ledger(tmp_path / "x.db")


@pytest.mark.parametrize("begun", [False, True])
def test_a_ledger_of_a_run_that_was_killed_while_it_made_it_is_empty(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / LEDGER
    path.touch()
    if begun:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA journal_mode=WAL")
        other.close()
    assert Ledger(path, read_only=True).rows() == []
    assert standing_checkpoint(tmp_path) is None
    fill(opened(path))
    assert Ledger(path, read_only=True).attempts() == [(1, 0, 0)]
