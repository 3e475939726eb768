"""The ledger's rows, over attempts."""

import sqlite3
from pathlib import Path

import pytest

from posttrain.ledger import Ledger


def fill(ledger: Ledger) -> None:
    """Five draws: two trained in steps 1 and 2, one rejected, one admitted, one under way."""
    first = ledger.next_draw_id()
    for draw_id in range(first, first + 5):
        ledger.drawn(draw_id, f"p{draw_id}", "math", 3, f"i{draw_id}" if draw_id else None)
    for draw_id in (first, first + 1, first + 3):
        ledger.judged(draw_id, "admitted", None, 1, 4, 100)
    ledger.judged(first + 2, "rejected", "none_solved", 0, 4, 80)
    ledger.trained([first], 1)
    ledger.trained([first + 1], 2)


def test_states_are_counted_by_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.db")
    assert ledger.counts() == {}
    assert ledger.next_draw_id() == 0
    fill(ledger)
    assert ledger.counts() == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 1, "trained": 2}
    assert ledger.next_draw_id() == 5


def test_a_row_keeps_what_was_said_of_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.db")
    fill(ledger)
    ledger.close()
    with sqlite3.connect(tmp_path / "x.db") as other:
        rows = other.execute("SELECT * FROM draws ORDER BY draw_id").fetchall()
    assert rows[1] == (1, 1, "p1", "math", "i1", 3, "trained", None, 1, 4, 100, 2)
    assert rows[2] == (1, 2, "p2", "math", "i2", 3, "rejected", "none_solved", 0, 4, 80, None)
    assert rows[4] == (1, 4, "p4", "math", "i4", 3, "drawn", None, None, None, None, None)


def test_a_draw_is_entered_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.db")
    ledger.drawn(0, "p", "math", 0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.drawn(0, "p", "math", 0)


def test_nothing_is_committed_between_step_boundaries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.db")
    fill(ledger)
    ledger.drawn(5, "p5", "math", 4)
    with sqlite3.connect(tmp_path / "x.db") as other:
        assert other.execute("SELECT count(*) FROM draws").fetchone() == (5,)
    ledger.close()
    with sqlite3.connect(tmp_path / "x.db") as other:
        assert other.execute("SELECT count(*) FROM draws").fetchone() == (6,)


def test_resuming_voids_what_was_not_trained_by_the_checkpoint(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "x.db")
    fill(first)
    first.close()
    second = Ledger(tmp_path / "x.db")
    assert second.attempt == 2
    assert second.next_draw_id() == 5
    assert second.void(after_step=1) == 3  # trained in step 2, admitted, under way
    assert second.counts() == {"rejected(none_solved)": 1, "trained": 1, "void": 3}
    fill(second)  # its own draws are not touched
    second.void(after_step=1)
    assert second.counts() == {"admitted": 1, "drawn": 1, "rejected(none_solved)": 2, "trained": 3, "void": 3}


def test_pass_rates_are_those_of_judged_groups(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.db")
    fill(ledger)
    ledger.judged(4, "rejected", "judge", 0, 0, 0)  # no verdict, so no pass rate
    assert sorted(ledger.pass_rates()) == [0.0, 0.25, 0.25, 0.25]
