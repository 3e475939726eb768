"""Policy losses and off-policy corrections: values and gradients against loops in plain float64 arithmetic."""

import math
import random
from dataclasses import dataclass

import pytest
import torch

from posttrain.losses.corrections import CORRECTIONS
from posttrain.losses.policy import LOSSES, Objective, Tokens, mean_by_rollout

LOW, HIGH = 0.2, 0.28
LENGTHS = [1, 40, 7, 100, 2, 50]


@dataclass
class Numbers:
    """Tokens of rollouts end to end, as lists; ratios fall below, into and above the clip range."""

    logprobs: list[float]
    proximal: list[float]
    advantages: list[float]
    rollouts: list[int]
    weights: list[float]


def numbers(seed: int, lengths: list[int] = LENGTHS, spread: float = 0.4) -> Numbers:
    rng = random.Random(seed)
    rollouts = [index for index, length in enumerate(lengths) for _ in range(length)]
    advantage = [rng.choice([-1.5, -0.5, 0.0, 0.5, 2.0]) for _ in lengths]
    proximal = [-rng.expovariate(1.0) for _ in rollouts]
    return Numbers(
        [value + rng.gauss(0, spread) for value in proximal],
        proximal,
        [advantage[index] for index in rollouts],
        rollouts,
        [rng.random() for _ in rollouts],
    )


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluated(name: str, at: Numbers, low: float = LOW, high: float = HIGH) -> tuple[float, list[float], Objective]:
    """`(weighed sum of the objective, its gradient by logprobs, the objective)`."""
    logprobs_N = column(at.logprobs).requires_grad_()
    tokens = Tokens(logprobs_N, column(at.proximal), column(at.advantages), torch.tensor(at.rollouts))
    objective = LOSSES[name](tokens, low, high)
    total = (objective.values * column(at.weights)).sum()
    total.backward()
    assert logprobs_N.grad is not None
    return total.item(), logprobs_N.grad.tolist(), objective


def surrogate(ratio: float, advantage: float, low: float, high: float) -> tuple[float, bool]:
    if advantage > 0 and ratio > 1 + high:
        return (1 + high) * advantage, True
    if advantage < 0 and ratio < 1 - low:
        return (1 - low) * advantage, True
    return ratio * advantage, False


def reference(name: str, at: Numbers, low: float, high: float) -> tuple[float, list[float], list[bool]]:
    """The same as `evaluated`, token by token, with derivatives written out."""
    total, gradient, clipped = 0.0, [0.0] * len(at.logprobs), [False] * len(at.logprobs)
    for rollout in range(max(at.rollouts) + 1):
        places = [place for place, index in enumerate(at.rollouts) if index == rollout]
        log_ratios = {place: at.logprobs[place] - at.proximal[place] for place in places}
        geometric = math.exp(math.fsum(log_ratios.values()) / len(places))
        for place in places:
            ratio, advantage, weight = math.exp(log_ratios[place]), at.advantages[place], at.weights[place]
            if name == "clip":
                value, clipped[place] = surrogate(ratio, advantage, low, high)
                gradient[place] += 0.0 if clipped[place] else weight * value
                total += weight * value
            elif name == "gspo":
                value, clipped[place] = surrogate(geometric, advantage, low, high)
                total += weight * value
                gradient[place] += 0.0 if clipped[place] else weight * value  # through its own probability
            else:
                least, most = (1 - low if name == "cispo" else 0.0), 1 + high
                capped = min(max(ratio, least), most)
                clipped[place] = capped != ratio
                gradient[place] += weight * capped * advantage
                total += weight * capped * advantage * at.logprobs[place]
    return total, gradient, clipped


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize(("seed", "low", "high"), [(0, LOW, HIGH), (1, 0.05, 0.1), (2, 1.0, 4.0)])
def test_against_a_loop(name: str, seed: int, low: float, high: float) -> None:
    at = numbers(seed)
    value, gradient, objective = evaluated(name, at, low, high)
    total, slopes, clipped = reference(name, at, low, high)
    assert value == pytest.approx(total, rel=1e-10)
    assert gradient == pytest.approx(slopes, rel=1e-9, abs=1e-14)
    assert objective.clipped.tolist() == clipped
    assert any(clipped) or high > 1


@pytest.mark.parametrize("name", list(LOSSES))
def test_on_policy_the_gradient_is_the_policy_gradient(name: str) -> None:
    """At a ratio of 1 each token weighs its advantage, whatever the loss, if weights are alike within a rollout."""
    at = numbers(3)
    at.logprobs = at.proximal
    at.weights = [1 / LENGTHS[rollout] for rollout in at.rollouts]
    _, gradient, objective = evaluated(name, at)
    expected = [weight * advantage for weight, advantage in zip(at.weights, at.advantages, strict=True)]
    assert gradient == pytest.approx(expected, rel=1e-9)
    assert not objective.clipped.any()


def test_gspo_by_tokens_is_gspo_where_all_tokens_of_a_rollout_weigh_alike() -> None:
    """By the derivative of the one ratio that all tokens of a rollout have."""
    at = numbers(5)
    at.weights = [1 / LENGTHS[rollout] for rollout in at.rollouts]
    _, gradient, _ = evaluated("gspo", at)
    logprobs_N, rollouts_N = column(at.logprobs).requires_grad_(), torch.tensor(at.rollouts)
    ratios_N = mean_by_rollout(logprobs_N - column(at.proximal), rollouts_N).exp()
    advantages_N = column(at.advantages)
    values_N = torch.minimum(ratios_N * advantages_N, ratios_N.clamp(1 - LOW, 1 + HIGH) * advantages_N)
    (values_N * column(at.weights)).sum().backward()
    assert logprobs_N.grad is not None
    assert gradient == pytest.approx(logprobs_N.grad.tolist(), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", list(LOSSES))
def test_micro_batches_of_whole_rollouts_add_up(name: str) -> None:
    at = numbers(4)
    value, gradient, _ = evaluated(name, at)
    parts, slopes = 0.0, []
    for first, last in ((0, 2), (3, 3), (4, 5)):
        places = [place for place, rollout in enumerate(at.rollouts) if first <= rollout <= last]
        piece = Numbers(
            *([values[place] for place in places] for values in (at.logprobs, at.proximal, at.advantages)),
            [at.rollouts[place] - first for place in places],
            [at.weights[place] for place in places],
        )  # fmt: skip
        part, slope, _ = evaluated(name, piece)
        parts, slopes = parts + part, slopes + slope
    assert parts == pytest.approx(value, rel=1e-10)
    assert slopes == pytest.approx(gradient, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.2, 1.0, 1.2, 1.2),
        (1.5, 1.0, 1.28, 0.0),  # no reward for going further up
        (0.5, 1.0, 0.5, 0.5),  # but a way back
        (0.5, -1.0, -0.8, 0.0),
        (1.5, -1.0, -1.5, -1.5),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, value: float, slope: float) -> None:
    at = Numbers([math.log(ratio) - 1.0], [-1.0], [advantage], [0], [1.0])
    total, gradient, _ = evaluated("clip", at)
    assert total == pytest.approx(value)
    assert gradient == pytest.approx([slope])


def test_aipo_has_no_lower_clip_and_cispo_keeps_the_gradient() -> None:
    at = Numbers([-9.0, 4.0], [-1.0, -1.0], [-1.0, 1.0], [0, 1], [1.0, 1.0])
    _, aipo, _ = evaluated("aipo", at, 0.2, 4.0)
    assert aipo == pytest.approx([-math.exp(-8), 5.0])
    _, cispo, _ = evaluated("cispo", at, 0.2, 4.0)
    assert cispo == pytest.approx([-0.8, 5.0])


def test_mean_by_rollout() -> None:
    values = mean_by_rollout(column([1.0, 3.0, 10.0]), torch.tensor([0, 0, 1]))
    assert values.tolist() == [2.0, 2.0, 10.0]
    assert mean_by_rollout(column([]), torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("name", list(CORRECTIONS))
@pytest.mark.parametrize("seed", [0, 1])
def test_corrections_against_a_loop(name: str, seed: int) -> None:
    at = numbers(seed, spread=0.5)
    low, high = 0.5, 2.0
    log_ratios = [new - old for new, old in zip(at.logprobs, at.proximal, strict=True)]
    expected = []
    for place, rollout in enumerate(at.rollouts):
        product = 1.0
        for other, log_ratio in enumerate(log_ratios):
            if at.rollouts[other] == rollout:
                product *= math.exp(log_ratio)
        ratio = math.exp(log_ratios[place]) if name.startswith("token") else product
        if name.endswith("truncate"):
            expected.append(min(ratio, high))
        else:
            expected.append(ratio if low <= ratio <= high else 0.0)
    weights_N = CORRECTIONS[name](column(log_ratios), torch.tensor(at.rollouts), low, high)
    assert weights_N.tolist() == pytest.approx(expected, rel=1e-9)
    assert len({round(value, 6) for value in expected}) > 1
    ones_N = CORRECTIONS[name](torch.zeros(5), torch.tensor([0, 0, 1, 1, 1]), low, high)
    assert ones_N.tolist() == [1.0] * 5  # nothing to correct on the policy's own samples
