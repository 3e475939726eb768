"""Advantages and losses against plain float64 loops, their gradients against derivatives written out by hand."""

import math
import random

import pytest
import torch

from posttrain.losses import (
    ADVANTAGES,
    AGGREGATIONS,
    clipped_policy_loss,
    dr_grpo_advantages,
    grpo_advantages,
    kl_penalty,
    sequence_mean,
    token_mean,
)

LOW, HIGH = 0.2, 0.28


def numbers(seed: int, count: int = 500) -> tuple[list[float], list[float], list[float]]:
    """Log-probabilities, those at sampling, advantages; ratios fall below, into and above the clip range."""
    rng = random.Random(seed)
    behaviour = [-rng.expovariate(1.0) for _ in range(count)]
    logprobs = [value + rng.gauss(0, 0.4) for value in behaviour]
    advantages = [rng.choice([-1.5, -0.5, 0.0, 0.5, 2.0]) for _ in range(count)]
    return logprobs, behaviour, advantages


def reference(
    logprobs: list[float], behaviour: list[float], advantages: list[float], num_loss_tokens: int
) -> tuple[float, list[float], int, float, float]:
    """`(loss, its gradient by logprobs, clipped tokens, sum of k3, largest ratio)`, token by token."""
    loss, gradient, clipped, kl, largest = 0.0, [], 0, 0.0, 0.0
    for new, old, advantage in zip(logprobs, behaviour, advantages, strict=True):
        ratio = math.exp(new - old)
        if advantage > 0 and ratio > 1 + HIGH:
            value, slope = (1 + HIGH) * advantage, 0.0
            clipped += 1
        elif advantage < 0 and ratio < 1 - LOW:
            value, slope = (1 - LOW) * advantage, 0.0
            clipped += 1
        else:
            value, slope = ratio * advantage, ratio * advantage  # d ratio / d logprob = ratio
        loss -= value / num_loss_tokens
        gradient.append(-slope / num_loss_tokens)
        kl += ratio - 1 - math.log(ratio)
        largest = max(largest, ratio)
    return loss, gradient, clipped, kl, largest


def alike(tokens: int, count: int) -> torch.Tensor:
    """The weights of a token mean over `count` tokens."""
    return torch.full((tokens,), 1 / count, dtype=torch.float64)


def loss_of(logprobs: torch.Tensor, behaviour: list[float], advantages: list[float], count: int) -> torch.Tensor:
    old, weights = torch.tensor(behaviour, dtype=torch.float64), torch.tensor(advantages, dtype=torch.float64)
    return clipped_policy_loss(logprobs, old, weights, alike(len(behaviour), count), LOW, HIGH).loss


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clipped_loss_against_a_loop(seed: int) -> None:
    logprobs, behaviour, advantages = numbers(seed)
    loss, gradient, clipped, kl, largest = reference(logprobs, behaviour, advantages, 700)
    logprobs_N = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    old, weights = torch.tensor(behaviour, dtype=torch.float64), torch.tensor(advantages, dtype=torch.float64)
    result = clipped_policy_loss(logprobs_N, old, weights, alike(500, 700), LOW, HIGH)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-12)
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == pytest.approx(gradient, rel=1e-12, abs=1e-15)
    assert clipped > 20
    assert result.clipped.item() == clipped
    assert result.kl.item() == pytest.approx(kl, rel=1e-10)
    assert result.max_ratio.item() == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.0, -2.0, -2.0, -2.0),
        (1.2, 1.0, 1.2, 1.2),
        (1.5, 1.0, 1.28, 0.0),  # no reward for going further up
        (0.5, 1.0, 0.5, 0.5),  # but a way back
        (0.5, -1.0, -0.8, 0.0),
        (1.5, -1.0, -1.5, -1.5),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_one_token(ratio: float, advantage: float, surrogate: float, slope: float) -> None:
    logprobs_N = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    loss = loss_of(logprobs_N, [-1.0], [advantage], 1)
    loss.backward()
    assert loss.item() == pytest.approx(-surrogate)
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.item() == pytest.approx(-slope)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    """At a ratio of 1 each token weighs its advantage over the token count: plain REINFORCE."""
    _, behaviour, advantages = numbers(3, 50)
    logprobs_N = torch.tensor(behaviour, dtype=torch.float64, requires_grad=True)
    loss_of(logprobs_N, behaviour, advantages, 50).backward()
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == pytest.approx([-value / 50 for value in advantages])


def test_microbatches_add_up_to_the_whole_batch() -> None:
    logprobs, behaviour, advantages = numbers(4, 100)
    whole = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    loss_of(whole, behaviour, advantages, 100).backward()
    parts = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    for piece in (slice(0, 7), slice(7, 60), slice(60, 100)):
        loss_of(parts[piece], behaviour[piece], advantages[piece], 100).backward()
    assert whole.grad is not None
    assert parts.grad is not None
    assert parts.grad.tolist() == pytest.approx(whole.grad.tolist(), rel=1e-12)


def test_each_token_is_weighed() -> None:
    logprobs, behaviour, advantages = numbers(6, 40)
    rng = random.Random(6)
    weights = [rng.random() for _ in range(40)]
    total = sum(
        weight * reference([new], [old], [advantage], 1)[0]
        for new, old, advantage, weight in zip(logprobs, behaviour, advantages, weights, strict=True)
    )
    columns = (torch.tensor(values, dtype=torch.float64) for values in (logprobs, behaviour, advantages, weights))
    assert clipped_policy_loss(*columns, LOW, HIGH).loss.item() == pytest.approx(total, rel=1e-12)


def test_aggregations() -> None:
    assert token_mean([3, 1]) == [0.25, 0.25]
    assert sequence_mean([4, 1]) == [0.125, 0.5]
    assert sequence_mean([0, 2]) == [0.5, 0.25]  # a rollout without a sampled token has nothing to weigh
    for aggregate in AGGREGATIONS.values():
        lengths = [5, 2, 9]
        assert sum(w * n for w, n in zip(aggregate(lengths), lengths, strict=True)) == pytest.approx(1.0)


def test_metrics_carry_no_gradient() -> None:
    logprobs_N = torch.tensor([-1.0, -0.5], requires_grad=True)
    result = clipped_policy_loss(logprobs_N, torch.tensor([-1.1, -2.0]), torch.ones(2), torch.ones(2), LOW, HIGH)
    assert result.loss.requires_grad
    assert not any(value.requires_grad for value in (result.clipped, result.kl, result.max_ratio))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], [0.8660, -0.8660, -0.8660, 0.8660]),
        ([1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),
        ([0.5, 0.5], [0.0, 0.0]),
    ],
)
def test_grpo_by_hand(rewards: list[float], expected: list[float]) -> None:
    values = grpo_advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
    assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_advantages_against_a_loop(size: int) -> None:
    rng = random.Random(size)
    rewards = [rng.choice([0.0, 0.1, 1.0]) + rng.random() / 100 for _ in range(size)]
    mean = 0.0
    for reward in rewards:
        mean += reward / size
    variance = 0.0
    for reward in rewards:
        variance += (reward - mean) ** 2 / (size - 1)
    rewards_G = torch.tensor(rewards, dtype=torch.float64)
    centred = [reward - mean for reward in rewards]
    scaled = [value / (math.sqrt(variance) + 1e-6) for value in centred]
    assert dr_grpo_advantages(rewards_G).tolist() == pytest.approx(centred, abs=1e-14)
    assert grpo_advantages(rewards_G).tolist() == pytest.approx(scaled, rel=1e-10)
    assert {name: function(rewards_G).tolist() for name, function in ADVANTAGES.items()} == {
        "grpo": grpo_advantages(rewards_G).tolist(),
        "dr_grpo": dr_grpo_advantages(rewards_G).tolist(),
    }


def test_grpo_ignores_the_scale_of_rewards_and_dr_grpo_keeps_it() -> None:
    rewards_G = torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    assert grpo_advantages(5 * rewards_G + 2).tolist() == pytest.approx(grpo_advantages(rewards_G).tolist(), rel=1e-5)
    assert dr_grpo_advantages(5 * rewards_G + 2).tolist() == pytest.approx((5 * dr_grpo_advantages(rewards_G)).tolist())


def test_kl_penalty_against_a_loop() -> None:
    logprobs, ref, _ = numbers(5, 200)
    logprobs_N = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    penalty = kl_penalty(logprobs_N, torch.tensor(ref, dtype=torch.float64), alike(200, 250))
    penalty.backward()
    total, gradient = 0.0, []
    for new, old in zip(logprobs, ref, strict=True):
        total += (math.exp(old - new) - 1 - (old - new)) / 250
        gradient.append((1 - math.exp(old - new)) / 250)
    assert penalty.item() == pytest.approx(total, rel=1e-12)
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == pytest.approx(gradient, rel=1e-10)
    same = torch.tensor(ref, dtype=torch.float64)
    assert kl_penalty(same, same, alike(200, 250)).item() == 0.0
