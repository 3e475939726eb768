"""The beta-binomial distribution: how many of a group's rollouts are solved if the pass rate is Beta distributed."""

from __future__ import annotations

import numpy as np


def log_likelihood(solved: np.ndarray, size: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Log-probability of outcomes in a given order, `solved` of `size`, in nats; all shapes broadcast.

    Example: `log_likelihood(1, 2, 1, 1) == log(1/6)`, as each of the two orders has a sixth.
    """
    steps = np.arange(size.max(initial=0))
    solved, size, alpha, beta = (each[..., None] for each in (solved, size, alpha, beta))
    factors = np.where(steps < solved, alpha + steps, beta + steps - solved) / (alpha + beta + steps)
    result: np.ndarray = np.log(np.where(steps < size, factors, 1.0)).sum(axis=-1)
    return result


def log_pmf(alpha: np.ndarray, beta: np.ndarray, size: int) -> np.ndarray:
    """Log-probability of 0, 1, … `size` solved, in nats; `alpha` and `beta` of shape [...] give [..., size + 1].

    Example: `np.exp(log_pmf(np.array(1.0), np.array(1.0), 3))` is 1/4 for each of 0 to 3.
    """
    steps = np.arange(size)
    orders = _cumulated(np.log((size - steps) / (steps + 1)))
    solved = _cumulated(np.log(alpha[..., None] + steps))
    failed = _cumulated(np.log(beta[..., None] + steps))[..., ::-1]
    result: np.ndarray = orders + solved + failed - np.log((alpha + beta)[..., None] + steps).sum(-1, keepdims=True)
    return result


def _cumulated(logs: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, … of the last axis, which grows by one."""
    sums = np.zeros((*logs.shape[:-1], logs.shape[-1] + 1))
    np.cumsum(logs, axis=-1, out=sums[..., 1:])
    return sums
