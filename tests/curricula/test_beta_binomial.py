"""The beta-binomial distribution against numbers by hand and against sampling."""

from math import comb

import numpy as np
import pytest

from curricula.beta_binomial import log_likelihood, log_pmf


def test_an_even_prior_makes_every_count_as_likely() -> None:
    assert np.exp(log_pmf(np.array(1.0), np.array(1.0), 3)) == pytest.approx([0.25] * 4)
    assert float(log_likelihood(np.array(1), np.array(2), np.array(1.0), np.array(1.0))) == pytest.approx(-np.log(6))


def test_against_sampling() -> None:
    rng = np.random.default_rng(0)
    alpha, beta = np.array([0.2, 3.0]), np.array([0.5, 1.5])
    pmf = np.exp(log_pmf(alpha, beta, 6))
    assert pmf.sum(axis=1) == pytest.approx([1.0, 1.0])
    solved = rng.binomial(6, rng.beta(alpha, beta, size=(200_000, 2)))
    for index in range(2):
        found = np.bincount(solved[:, index], minlength=7) / len(solved)
        assert found == pytest.approx(pmf[index], abs=0.005)


def test_a_sequence_is_one_of_the_orders_of_its_count() -> None:
    alpha, beta = np.array([[0.3, 2.0]]), np.array([[4.0, 0.7]])
    size = np.array([[5], [2], [1]])
    for solved in (0, 1):
        logs = log_likelihood(np.full((3, 1), solved), size, alpha, beta)
        for row, count in enumerate((5, 2, 1)):
            expected = log_pmf(alpha[0], beta[0], count)[:, solved] - np.log(comb(count, solved))
            assert logs[row] == pytest.approx(expected)
