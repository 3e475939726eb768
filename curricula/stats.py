"""What is known of each prompt's pass rate: Beta posteriors over outcomes, kept as columns.

A prompt's evidence fades with the policy versions that have passed since, because the policy has changed; the decay is
applied when a row is read or written. A prompt never drawn takes its prior from the prompts of the same capability,
difficulty and source that were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollouts.types import Prompt


@dataclass(frozen=True)
class PromptStats:
    """A view of one row.

    Example: `PromptStats("9f…", attempts=16, solves=4, alpha=3.1, beta=7.6, last_version=12)`
    """

    prompt_id: str
    attempts: int
    solves: int
    alpha: float
    beta: float
    last_version: int

    @property
    def pass_rate(self) -> float:
        """The posterior's mean."""
        return self.alpha / (self.alpha + self.beta)


class StatsTable:
    """The statistics of a fixed list of prompts; P = prompts, K = kinds (capability, difficulty, source)."""

    def __init__(self, prompts: Sequence[Prompt], decay: float = 0.97, prior_strength: float = 6.0) -> None:
        """Starts with nothing known.

        Args:
            prompts: the order fixes each prompt's row.
            decay: share of the evidence left after one policy version.
            prior_strength: how many outcomes the prior of a prompt's kind is worth.
        """
        self.prompt_ids = [prompt.prompt_id for prompt in prompts]
        self.decay, self.prior_strength = decay, prior_strength
        keys = [(prompt.capability, prompt.difficulty, prompt.source) for prompt in prompts]
        kinds = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        self.kinds = ["/".join(map(str, key)) for key in kinds]
        self.kind_P = np.array([kinds[key] for key in keys], dtype=np.int64)
        count = len(prompts)
        self.attempts_P = np.zeros(count, dtype=np.int64)
        self.solves_P = np.zeros(count, dtype=np.int64)
        self.seen_P = np.zeros(count)  # outcomes, faded up to last_version
        self.solved_P = np.zeros(count)
        self.version_P = np.zeros(count, dtype=np.int64)
        self.kind_seen_K = np.zeros(len(kinds))
        self.kind_solved_K = np.zeros(len(kinds))
        self.kind_version_K = np.zeros(len(kinds), dtype=np.int64)

    def observe(self, row: int, outcomes: Sequence[bool], version: int) -> None:
        """Adds the outcomes of a group sampled under a policy version."""
        solved, seen = sum(outcomes), len(outcomes)
        self.attempts_P[row] += seen
        self.solves_P[row] += solved
        fade = self.decay ** max(0, version - self.version_P[row])
        self.seen_P[row] = self.seen_P[row] * fade + seen
        self.solved_P[row] = self.solved_P[row] * fade + solved
        self.version_P[row] = max(version, self.version_P[row])
        kind = self.kind_P[row]
        fade = self.decay ** max(0, version - self.kind_version_K[kind])
        self.kind_seen_K[kind] = self.kind_seen_K[kind] * fade + seen
        self.kind_solved_K[kind] = self.kind_solved_K[kind] * fade + solved
        self.kind_version_K[kind] = max(version, self.kind_version_K[kind])

    def posterior(self, rows: np.ndarray, version: int) -> tuple[np.ndarray, np.ndarray]:
        """`(alpha, beta)` of rows as of a policy version."""
        fade = self.decay ** np.maximum(0, version - self.version_P[rows])
        kind = self.kind_P[rows]
        mean = (self.kind_solved_K[kind] + 1) / (self.kind_seen_K[kind] + 2)
        solved, seen = self.solved_P[rows] * fade, self.seen_P[rows] * fade
        return solved + self.prior_strength * mean, seen - solved + self.prior_strength * (1 - mean)

    def view(self, row: int, version: int) -> PromptStats:
        """One prompt's statistics."""
        alpha, beta = self.posterior(np.array([row]), version)
        return PromptStats(
            self.prompt_ids[row],
            int(self.attempts_P[row]),
            int(self.solves_P[row]),
            float(alpha[0]),
            float(beta[0]),
            int(self.version_P[row]),
        )

    _COLUMNS = ("attempts_P", "solves_P", "seen_P", "solved_P", "version_P")
    _KINDS = ("kind_seen_K", "kind_solved_K", "kind_version_K")

    def state_dict(self) -> dict[str, Any]:
        """JSON types only; rows by prompt id, so that a changed dataset can be restored from it."""
        touched = np.flatnonzero(self.attempts_P)
        return {
            "prompt_ids": [self.prompt_ids[row] for row in touched],
            **{name: getattr(self, name)[touched].tolist() for name in self._COLUMNS},
            "kinds": self.kinds,
            **{name: getattr(self, name).tolist() for name in self._KINDS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; prompts that are gone are skipped, new ones stay unseen."""
        rows = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}
        known = [(rows[prompt_id], index) for index, prompt_id in enumerate(state["prompt_ids"]) if prompt_id in rows]
        for name in self._COLUMNS:
            column = getattr(self, name)
            for row, index in known:
                column[row] = state[name][index]
        kinds = {kind: index for index, kind in enumerate(state["kinds"])}
        for row, kind in enumerate(self.kinds):
            if kind in kinds:
                for name in self._KINDS:
                    getattr(self, name)[row] = state[name][kinds[kind]]
