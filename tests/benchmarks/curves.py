"""Learning curves: the settings that are swept for them, smoothed, and where they reach a goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from tests.benchmarks.harness import Measurement

Cost = Callable[[Measurement], tuple[float, ...]]
"""Of a run, the less the better."""


class Setting(NamedTuple):
    """What is swept. Example: `str(Setting(6, 2e-4)) == "6 prompts at 0.0002"`."""

    prompts: int
    """Of a train step."""
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.prompts} prompts at {self.learning_rate:g}"

    def overrides(self) -> list[str]:
        """Of a preset."""
        return [f"rl.prompts_per_step={self.prompts}", f"rl.learning_rate={self.learning_rate}"]


class Grid(NamedTuple):
    """The settings that a sweep may take, rising."""

    prompts: Sequence[int]
    learning_rate: Sequence[float] = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)

    def neighbours(self, setting: Setting) -> list[Setting]:
        """The settings that differ by one place in one of the two; learning rates first."""
        found = []
        for name in ("learning_rate", "prompts"):
            values = list(getattr(self, name))
            index = values.index(getattr(setting, name))
            places = [each for each in (index + 1, index - 1) if 0 <= each < len(values)]
            found += [setting._replace(**{name: values[place]}) for place in places]
        return found


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


def evaluated(steps: int, times: int) -> tuple[int, int]:
    """(steps, how many between two evaluations), so that about so many steps end with the last of so many evaluations.

    Example: `evaluated(640, 12) == (636, 53)`
    """
    every = max(1, round(steps / times))
    return every * times, every


def ending(found: Measurement) -> tuple[float, ...]:
    """The cost of a run that is to end high."""
    return (-smoothed(found["pass@1"])[-1],)


def reaching(goal: float, spent: str) -> Cost:
    """The cost of a run that is to reach a goal soon; of those that do not, the one that comes nearest is best.

    Args:
        goal: pass@1.
        spent: the name of what is spent up to each point of a curve.
    """

    def cost(found: Measurement) -> tuple[float, ...]:
        curve = smoothed(found["pass@1"])
        needed = reached(found[spent], curve, goal)
        return (math.inf if needed is None else needed, -max(curve))

    return cost


@dataclass(frozen=True)
class Sweep:
    """The settings of one arm that were measured, and the best of them."""

    grid: Grid
    found: dict[Setting, Measurement]
    best: Setting

    @property
    def at_edge(self) -> list[str]:
        """In what the best has no neighbour on one side, as far as there is a choice: a better one may lie beyond."""
        return [
            name
            for name, values, value in zip(self.grid._fields, self.grid, self.best, strict=True)
            if len(values) > 1 and value in (values[0], values[-1])
        ]

    def as_json(self) -> dict[str, Any]:
        """For the line of a benchmark."""
        measured = {str(setting): found for setting, found in self.found.items()}
        return {"best": str(self.best), "at_edge": self.at_edge, "measured": measured}


def climb(grid: Grid, start: Setting, measure: Callable[[Setting], Measurement | None], cost: Cost) -> Sweep | None:
    """Measures settings from `start` on, the neighbours of the best one each time, until none of them is better.

    Returns:
        None where a setting could not be measured yet.
    """
    found: dict[Setting, Measurement] = {}
    best, todo = start, [start]
    while todo:
        for setting in todo:
            values = measure(setting)
            if values is None:
                return None
            found[setting] = values
            if cost(values) < cost(found[best]):
                best = setting
                break
        todo = [each for each in grid.neighbours(best) if each not in found]
    return Sweep(grid, found, best)


def sweep_all(
    arms: Sequence[str], grid: Grid, start: Setting, measure: Callable[[str, Setting], Measurement | None], spent: str
) -> dict[str, Sweep]:
    """Sweeps each arm; fewer of them where a setting could not be measured yet.

    Args:
        arms: the first is the reference, whose best setting is that with which it ends highest; the others' is that
            with which they reach the best of its ends at the least cost.
        grid: of settings.
        start: where each sweep begins.
        measure: a run of an arm with a setting.
        spent: the name of the cost up to each point of a curve.
    """
    found: dict[str, Sweep] = {}
    cost: Cost = ending
    for arm in arms:
        swept = climb(grid, start, partial(measure, arm), cost)
        if swept is None:
            break
        found[arm] = swept
        cost = reaching(max(-ending(each)[0] for each in found[arms[0]].found.values()), spent)
    return found
