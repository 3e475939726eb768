"""Learning curves: smoothed, and where they reach a goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def smoothed(rates: Sequence[float]) -> list[float]:
    """The mean of each value and of up to two on either side."""
    return [statistics.fmean(rates[max(0, index - 2) : index + 3]) for index in range(len(rates))]


def reached(tokens: Sequence[float], rates: Sequence[float], goal: float) -> float | None:
    """The tokens at which a curve first reaches a goal, between its points on a line; None if it does not.

    Example: `reached([0, 100], [0.4, 0.6], 0.5) == 50`
    """
    for index, rate in enumerate(rates):
        if rate >= goal:
            if index == 0:
                return tokens[0]
            before = rates[index - 1]
            share = (goal - before) / (rate - before)
            return tokens[index - 1] + share * (tokens[index] - tokens[index - 1])
    return None
