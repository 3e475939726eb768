"""Estimates of the KL divergence: against loops, and their expectations against the exact divergence."""

import math
import random

import pytest
import torch

from posttrain.losses.kl import KL_ESTIMATORS


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [
        ("k1", lambda x, y: x - y, lambda x, y: 1.0),
        ("k2", lambda x, y: (x - y) ** 2 / 2, lambda x, y: x - y),
        ("k3", lambda x, y: math.exp(y - x) - 1 - (y - x), lambda x, y: 1 - math.exp(y - x)),
    ],
)
def test_against_a_loop(name: str, value: object, slope: object) -> None:
    rng = random.Random(0)
    other = [-rng.expovariate(1.0) for _ in range(200)]
    logprobs = [number + rng.gauss(0, 0.4) for number in other]
    logprobs_N = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    estimates_N = KL_ESTIMATORS[name](logprobs_N, torch.tensor(other, dtype=torch.float64))
    estimates_N.sum().backward()
    assert callable(value)
    assert callable(slope)
    assert estimates_N.tolist() == pytest.approx([value(x, y) for x, y in zip(logprobs, other, strict=True)])
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == pytest.approx([slope(x, y) for x, y in zip(logprobs, other, strict=True)])


def test_expected_values_and_gradients() -> None:
    """What the docstrings say, on a distribution of five tokens, weighing each by its probability."""
    torch.manual_seed(0)
    logits, other = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    logprobs, other_logprobs = logits.log_softmax(0), other.log_softmax(0)
    forward = (logprobs.exp() * (logprobs - other_logprobs)).sum()
    backward = (other_logprobs.exp() * (other_logprobs - logprobs)).sum()
    slopes = {
        "k1": torch.zeros(5, dtype=torch.float64),
        "k2": torch.autograd.grad(forward, logits, retain_graph=True)[0],
        "k3": torch.autograd.grad(backward, logits, retain_graph=True)[0],
    }
    for name, estimator in KL_ESTIMATORS.items():
        estimates = estimator(logprobs, other_logprobs)
        expected = (logprobs.exp().detach() * estimates).sum()
        assert (expected.item() == pytest.approx(forward.item())) == (name != "k2"), name
        slope = torch.autograd.grad(expected, logits, retain_graph=True)[0]
        assert slope.tolist() == pytest.approx(slopes[name].tolist(), abs=1e-12), name
