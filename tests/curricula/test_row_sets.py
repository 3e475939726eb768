"""Sets of rows, against Python's own."""

import numpy as np

from curricula.row_sets import NONE, RowSets


def test_random_moves_against_python_sets() -> None:
    rng = np.random.default_rng(0)
    sets, expected = RowSets(40, 3), [set[int](), set[int](), set[int]()]
    for _ in range(3000):
        row, number = int(rng.integers(40)), int(rng.integers(-1, 3))
        for rows in expected:
            rows.discard(row)
        if number == NONE:
            sets.remove(row)
        else:
            sets.move(row, number)
            expected[number].add(row)
        assert [sorted(rows) for rows in sets.sets] == [sorted(rows) for rows in expected]
        for number, rows in enumerate(sets.sets):
            assert all(sets.set_P[row] == number and rows[sets.place_P[row]] == row for row in rows)


def test_filled_as_it_was_without_the_rows_that_are_gone() -> None:
    rng = np.random.default_rng(1)
    sets = RowSets(50, 2)
    for row in rng.permutation(50).tolist():
        sets.move(row, row % 2)
    sets.remove(7)
    same = RowSets(50, 2)
    same.fill(np.array(sets.set_P), np.array(sets.place_P))
    assert [list(rows) for rows in same.sets] == [list(rows) for rows in sets.sets]
    assert same.set_P[7] == NONE
    few = RowSets(25, 2)
    few.fill(np.array(sets.set_P)[:25], np.array(sets.place_P)[:25])
    assert [list(rows) for rows in few.sets] == [[row for row in rows if row < 25] for rows in sets.sets]
    for row in range(25):
        if row != 7:
            assert few.sets[row % 2][few.place_P[row]] == row
