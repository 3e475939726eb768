"""Empirical-Bayes priors: the Beta distribution of the pass rates of alike prompts, fitted to their groups.

The fit gives mean and strength. So a kind of prompt whose prompts are all or nothing has a prior with its mass at 0 and
1, and one whose prompts are alike a narrow one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from curricula.beta_binomial import log_pmf

MEMORY = 128
"""Groups of a kind after which an older one counts 1/e: the policy that made them has changed."""
POOLED = 2.0
"""How many groups of its class a kind starts with."""
REFIT = 8
"""A class is fitted anew when it has grown by one part of so many, or by so much of `MEMORY`."""
MEANS = 1 / (1 + np.exp(-np.linspace(-4.5, 4.5, 31)))
STRENGTHS = np.geomspace(0.1, 100, 19)


class Priors:
    """Beta priors of K kinds, each of one of C classes; G = rollouts in a group, M = pairs of mean and strength."""

    def __init__(self, class_K: Sequence[int], group_size: int) -> None:
        """Starts with nothing known.

        Args:
            class_K: each kind's class; a kind with few groups takes after its class.
            group_size: G.
        """
        self.class_K = np.array(class_K, dtype=np.int32)
        self.counts_KG = np.zeros((len(class_K), group_size + 1))  # groups, by solved rollouts; older ones faded
        classes = int(self.class_K.max(initial=0)) + 1
        self._groups_C, self._fitted_C = np.zeros(classes), np.zeros(classes)
        means, strengths = (grid.ravel() for grid in np.meshgrid(MEANS, STRENGTHS))
        self._means_M, self._log_strengths_M = means, np.log(strengths)
        self._log_pmf_GM = log_pmf(means * strengths, (1 - means) * strengths, group_size).T
        self._log_weight_M = np.log(means * (1 - means))  # uniform in the mean, though the grid is even in its logit
        self.alpha_K, self.beta_K = np.zeros(len(class_K)), np.zeros(len(class_K))
        self.fit()

    def observe(self, kinds_N: np.ndarray, solved_N: np.ndarray, seen_N: np.ndarray | None = None) -> None:
        """Adds N groups, each of a kind and with so many solved of the rollouts seen (None: of G).

        What is missing of a group that was given up is spread over what it may have been, by the fit so far: the
        expectation step of EM. Left out, such groups would leave only those that could teach.
        """
        groups_K = np.bincount(kinds_N, minlength=len(self.class_K))
        self.counts_KG *= ((1 - 1 / MEMORY) ** groups_K)[:, None]
        size = self.counts_KG.shape[1] - 1
        seen_N = np.full(len(kinds_N), size) if seen_N is None else seen_N
        for seen in np.unique(seen_N).tolist():
            kind, solved = kinds_N[seen_N == seen], solved_N[seen_N == seen]
            rest = np.exp(log_pmf(self.alpha_K[kind] + solved, self.beta_K[kind] + seen - solved, size - seen))
            np.add.at(self.counts_KG, (kind[:, None], solved[:, None] + np.arange(size - seen + 1)), rest)
        self._groups_C += np.bincount(self.class_K[kinds_N], minlength=len(self._groups_C))
        grown_C = self._groups_C - self._fitted_C
        for number in np.flatnonzero(grown_C >= np.clip(np.minimum(self._fitted_C, MEMORY) / REFIT, 1, None)).tolist():
            self._fit(number)

    def add(self, class_number: int) -> None:
        """Adds a kind of which nothing is known but its class."""
        self.class_K = np.append(self.class_K, np.int32(class_number))
        self.counts_KG = np.vstack((self.counts_KG, np.zeros(self.counts_KG.shape[1])))
        self.alpha_K, self.beta_K = np.append(self.alpha_K, 0.0), np.append(self.beta_K, 0.0)
        self._fit(class_number)

    def fit(self) -> None:
        """Fits all kinds to their counts."""
        for number in range(len(self._groups_C)):
            self._groups_C[number] = self.counts_KG[self.class_K == number].sum()
            self._fit(number)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the fit, and of how many groups of each class it is of; counts are kept by the caller."""
        return {
            "alpha": self.alpha_K.copy(), "beta": self.beta_K.copy(),
            "groups": self._groups_C.copy(), "fitted": self._fitted_C.copy(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave of the same kinds, so that the next fit comes when it would have come."""
        self.alpha_K, self.beta_K = state["alpha"].copy(), state["beta"].copy()
        self._groups_C, self._fitted_C = state["groups"].copy(), state["fitted"].copy()

    def _fit(self, number: int) -> None:
        """Fits the kinds of a class: the mean of the posterior on a grid of means and strengths."""
        kinds = np.flatnonzero(self.class_K == number)
        counts = self.counts_KG[kinds]
        pooled_G = counts.sum(axis=0)
        counts += pooled_G * (POOLED / max(POOLED, pooled_G.sum()))
        log_posterior = counts @ self._log_pmf_GM + self._log_weight_M
        weights = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mean, strength = weights @ self._means_M, np.exp(weights @ self._log_strengths_M)
        self.alpha_K[kinds], self.beta_K[kinds] = mean * strength, (1 - mean) * strength
        self._fitted_C[number] = self._groups_C[number]
