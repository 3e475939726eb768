"""Learning curves: the settings that are swept for them, smoothed, and where they reach a goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tests.benchmarks.harness import Measurement


class Setting(NamedTuple):
    """What is swept. Example: `str(Setting(6, 2e-4)) == "6 prompts at 0.0002"`."""

    prompts: int
    """Of a train step."""
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.prompts} prompts at {self.learning_rate:g}"

    def overrides(self, groups: int) -> list[str]:
        """Of a preset, for a run that trains on so many groups."""
        return [
            f"rl.prompts_per_step={self.prompts}", f"rl.learning_rate={self.learning_rate}",
            f"rl.steps={groups // self.prompts}",
        ]  # fmt: skip


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


def best_settings(swept: Mapping[str, Mapping[Setting, Measurement]], reference: str, cost: str) -> dict[str, Setting]:
    """Each arm's best setting.

    Args:
        swept: arm and setting → its measurement, with a curve in `pass@1`.
        reference: the arm that takes the setting with which it ends highest; the others take the one with which they
            reach the best of these ends at the least cost, or, where none does, the one that comes nearest.
        cost: the name of what is spent up to each point of a curve.
    """
    ends = {setting: smoothed(found["pass@1"])[-1] for setting, found in swept[reference].items()}
    goal = max(ends.values())

    def order(arm: str, setting: Setting) -> tuple[float, float]:
        curve = smoothed(swept[arm][setting]["pass@1"])
        needed = reached(swept[arm][setting][cost], curve, goal)
        return (math.inf if needed is None else needed, -max(curve))

    best = {arm: min(settings, key=partial(order, arm)) for arm, settings in swept.items()}
    return best | {reference: max(ends, key=ends.__getitem__)}
