"""Disjoint sets of rows: add, remove and draw at random, each in O(1)."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np

NONE = -1
"""The number of the set of a row that is in none."""


class RowSets:
    """S sets of P rows; a row is in one of them at most.

    A row's place is its index within its set; the last row of the set moves to the place of one that is removed.
    """

    def __init__(self, rows: int, sets: int) -> None:
        """Starts with empty sets."""
        self.sets = [array("i") for _ in range(sets)]
        self.set_P, self.place_P = array("h", [NONE]) * rows, array("i", [0]) * rows

    def move(self, row: int, number: int) -> None:
        """Puts a row into a set, and out of the one that it is in."""
        self.remove(row)
        rows = self.sets[number]
        self.set_P[row], self.place_P[row] = number, len(rows)
        rows.append(row)

    def remove(self, row: int) -> None:
        """Takes a row out of its set, if it is in one."""
        if self.set_P[row] == NONE:
            return
        rows, place = self.sets[self.set_P[row]], self.place_P[row]
        last = rows.pop()
        if last != row:
            rows[place], self.place_P[last] = last, place
        self.set_P[row] = NONE

    def fill(self, set_P: np.ndarray, place_P: np.ndarray) -> None:
        """Puts every row into its set, in the order of places; these may have gaps, where rows are gone."""
        self.set_P, self.place_P = array("h", set_P.astype(np.int16).tobytes()), array("i", [0]) * len(set_P)
        places = np.frombuffer(self.place_P, dtype=np.int32) if len(set_P) else np.zeros(0, dtype=np.int32)
        order = np.lexsort((place_P, set_P))
        bounds = np.searchsorted(set_P[order], range(len(self.sets) + 1))
        for number, (first, end) in enumerate(pairwise(bounds.tolist())):
            rows = order[first:end].astype(np.int32)
            places[rows] = np.arange(len(rows))
            self.sets[number] = array("i", rows.tobytes())
