"""Priors fitted to the groups of alike prompts."""

import numpy as np
import pytest

from curricula.beta_binomial import log_pmf
from curricula.priors import Priors


def groups(rng: np.random.Generator, alpha: float, beta: float, count: int, size: int = 8) -> np.ndarray:
    return rng.binomial(size, rng.beta(alpha, beta, count))


def test_nothing_known_is_an_even_mean() -> None:
    priors = Priors([0, 0], 8)
    assert priors.alpha_K == pytest.approx(priors.beta_K)
    assert priors.alpha_K[0] == priors.alpha_K[1]


@pytest.mark.parametrize(("alpha", "beta"), [(0.15, 0.3), (1.0, 1.0), (6.0, 14.0), (20.0, 5.0)])
def test_finds_mean_and_strength(alpha: float, beta: float) -> None:
    """A kind that is all or nothing gets its mass at the ends, one of alike prompts a narrow prior."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        priors = Priors([0], 8)
        solved = groups(rng, alpha, beta, 400)
        for part in np.split(solved, 20):
            priors.observe(np.zeros(20, dtype=int), part)
        priors.fit()
        found.append((priors.alpha_K[0], priors.beta_K[0]))
    mean_alpha, mean_beta = np.exp(np.log(found).mean(axis=0))
    assert mean_alpha / (mean_alpha + mean_beta) == pytest.approx(alpha / (alpha + beta), abs=0.04)
    assert mean_alpha + mean_beta == pytest.approx(alpha + beta, rel=0.4)
    assert (mean_alpha < 1) == (alpha < 1) or alpha == 1.0


def test_a_kind_without_groups_takes_after_its_class() -> None:
    rng = np.random.default_rng(1)
    priors = Priors([0, 0, 1], 8)
    priors.observe(np.zeros(300, dtype=int), groups(rng, 16.0, 4.0, 300))
    means = priors.alpha_K / (priors.alpha_K + priors.beta_K)
    assert means[0] == pytest.approx(0.8, abs=0.05)
    assert 0.55 < means[1] < means[0]
    assert means[2] == pytest.approx(0.5)


def test_old_groups_give_way() -> None:
    rng = np.random.default_rng(2)
    priors = Priors([0], 8)
    priors.observe(np.zeros(500, dtype=int), groups(rng, 2.0, 18.0, 500))
    for part in np.split(groups(rng, 18.0, 2.0, 1500), 30):
        priors.observe(np.zeros(50, dtype=int), part)
    priors.fit()
    assert priors.alpha_K[0] / (priors.alpha_K[0] + priors.beta_K[0]) > 0.85


def test_groups_together_are_as_one_after_the_other_but_for_the_fading() -> None:
    solved = np.arange(9).repeat(5)
    together, single = Priors([0, 0], 8), Priors([0, 0], 8)
    kinds = np.arange(len(solved)) % 2
    together.observe(kinds, solved)
    for kind, each in zip(kinds, solved, strict=True):
        single.observe(np.array([kind]), np.array([each]))
    together.fit()
    single.fit()
    assert together.alpha_K == pytest.approx(single.alpha_K, rel=0.05)
    assert together.counts_KG == pytest.approx(single.counts_KG, abs=0.5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.15, 0.3), (1.0, 3.0), (6.0, 14.0)])
def test_groups_that_were_given_up_count_as_what_they_may_have_been(alpha: float, beta: float) -> None:
    """The prior is about that of whole groups, though only groups whose first four rollouts are mixed are whole."""
    rng = np.random.default_rng(3)
    whole, early = Priors([0], 8), Priors([0], 8)
    for _ in range(40):
        solved_NG = rng.random((20, 8)) < rng.beta(alpha, beta, (20, 1))
        alike = np.isin(solved_NG[:, :4].sum(axis=1), (0, 4))
        solved, first = solved_NG.sum(axis=1), solved_NG[:, :4].sum(axis=1)
        whole.observe(np.zeros(20, dtype=int), solved)
        early.observe(np.zeros(20, dtype=int), np.where(alike, first, solved), np.where(alike, 4, 8))
    chances = []
    for priors in (whole, early):
        priors.fit()
        pmf = np.exp(log_pmf(priors.alpha_K, priors.beta_K, 8))[0]
        chances.append(1 - pmf[0] - pmf[-1])
    assert early.counts_KG.sum() == pytest.approx(whole.counts_KG.sum())  # each group counts once
    assert chances[1] == pytest.approx(chances[0], abs=0.05)
