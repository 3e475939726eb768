"""Which prompt comes next: by the expected learning signal of its group, or uniformly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from curricula.stats import StatsTable
from rollouts.types import Prompt

CANDIDATES = 24
"""Prompts among which one draw chooses, so that a draw costs the same however many prompts there are."""

THOMPSON_DRAWS = 4
"""Pass rates drawn for each candidate."""


class PromptSampler:
    """Draws prompts of a capability; a prompt in flight is not drawn again.

    `signal`: a few candidates are drawn at random, and the one with the highest chance of a group with mixed outcomes,
    `1 - p^G - (1-p)^G`, is taken, averaged over a few pass rates p drawn from its posterior (Thompson sampling with
    fewer surprises: unseen prompts are explored, yet one known to be mixed wins more often). `uniform`: any prompt
    alike.
    """

    def __init__(self, prompts: Sequence[Prompt], selection: str, group_size: int, seed: int) -> None:
        """Takes the prompts in a fixed order; `selection` is `signal` or `uniform`."""
        self.prompts = list(prompts)
        self.selection, self.group_size = selection, group_size
        self.stats = StatsTable(self.prompts)
        self._rng = np.random.default_rng(seed)
        self._rows = {
            capability: np.array([row for row, prompt in enumerate(self.prompts) if prompt.capability == capability])
            for capability in dict.fromkeys(prompt.capability for prompt in self.prompts)
        }
        self._in_flight: Counter[int] = Counter()

    @property
    def capabilities(self) -> list[str]:
        """The capabilities of the prompts, in the order of their first appearance."""
        return list(self._rows)

    def draw(self, capability: str, version: int) -> int:
        """The row of the next prompt of a capability, as of a policy version; it is in flight until observed."""
        rows = self._rows[capability]
        candidates = rows[self._rng.integers(len(rows), size=CANDIDATES)]
        free = np.array([row for row in candidates if row not in self._in_flight], dtype=np.int64)
        if len(free) == 0:  # nearly all are in flight
            free = self._rng.permutation([row for row in rows if row not in self._in_flight])[:CANDIDATES]
        if len(free) == 0:  # a set smaller than what is in flight: a prompt is then drawn twice
            free = candidates
        if self.selection == "uniform":
            choice = int(free[0])
        else:
            alpha, beta = self.stats.posterior(free, version)
            rates = self._rng.beta(alpha, beta, size=(THOMPSON_DRAWS, len(free)))
            signal = 1 - rates**self.group_size - (1 - rates) ** self.group_size
            choice = int(free[signal.mean(axis=0).argmax()])
        self._in_flight[choice] += 1
        return choice

    def hold(self, row: int) -> None:
        """Counts a draw of another run's life as in flight: it is made again."""
        self._in_flight[row] += 1

    def observe(self, row: int, outcomes: Sequence[bool] | None, version: int) -> None:
        """Ends a draw: with the outcomes of its group, or with None if there are none."""
        self._in_flight[row] -= 1
        if self._in_flight[row] <= 0:
            del self._in_flight[row]
        if outcomes is not None:
            self.stats.observe(row, outcomes, version)

    def state_dict(self) -> dict[str, Any]:
        """Statistics and random state; draws in flight are not part of it."""
        return {"stats": self.stats.state_dict(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.stats.load_state_dict(state["stats"])
        self._rng.bit_generator.state = state["rng"]
