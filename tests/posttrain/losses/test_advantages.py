"""Advantages against plain float64 loops, and by hand."""

import math
import random

import pytest
import torch

from posttrain.losses.advantages import ADVANTAGES, overlong_penalty


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    return math.sqrt(math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


def expected(name: str, groups: list[list[float]]) -> list[list[float]]:
    """What an estimator should give, rollout by rollout."""
    everything = [reward for group in groups for reward in group]
    result = []
    for group in groups:
        row = []
        for index, reward in enumerate(group):
            others = group[:index] + group[index + 1 :]
            if name == "grpo":
                row.append((reward - mean(group)) / (deviation(group) + 1e-6))
            elif name == "dr_grpo":
                row.append(reward - mean(group))
            elif name == "rloo":
                row.append(reward - mean(others))
            elif name == "reinforce_pp":
                row.append((reward - mean(everything)) / (deviation(everything) + 1e-6))
            else:
                spread = deviation([reward - mean(group) for group in groups for reward in group])
                row.append((reward - mean(group)) / (spread + 1e-6))
        result.append(row)
    return result


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize(("prompts", "size"), [(1, 2), (3, 4), (16, 8)])
def test_against_a_loop(name: str, prompts: int, size: int) -> None:
    rng = random.Random(prompts)
    groups = [[rng.choice([0.0, 0.1, 1.0]) + rng.random() / 100 for _ in range(size)] for _ in range(prompts)]
    values = ADVANTAGES[name](torch.tensor(groups, dtype=torch.float64)).tolist()
    for row, reference in zip(values, expected(name, groups), strict=True):
        assert row == pytest.approx(reference, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("rewards", "values"),
    [
        ([1.0, 0.0, 0.0, 1.0], [0.8660, -0.8660, -0.8660, 0.8660]),
        ([1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),
        ([0.5, 0.5], [0.0, 0.0]),
    ],
)
def test_grpo_by_hand(rewards: list[float], values: list[float]) -> None:
    assert ADVANTAGES["grpo"](torch.tensor([rewards])).tolist()[0] == pytest.approx(values, abs=1e-4)


def test_what_scale_and_other_groups_change() -> None:
    rewards_PG = torch.tensor([[0.0, 1.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    other_PG = torch.tensor([[0.0, 1.0, 1.0, 3.0], [5.0, 9.0, 1.0, 1.0]], dtype=torch.float64)
    for name, advantages in ADVANTAGES.items():
        scaled = torch.allclose(advantages(5 * rewards_PG + 2), advantages(rewards_PG), rtol=1e-4)
        assert scaled == (name not in ("dr_grpo", "rloo")), name
        alone = torch.equal(advantages(rewards_PG)[0], advantages(other_PG)[0])
        assert alone == (name in ("grpo", "dr_grpo", "rloo")), name


def test_one_baseline_for_all_prompts_needs_no_group() -> None:
    values = ADVANTAGES["reinforce_pp"](torch.tensor([[1.0], [0.0], [0.0]])).flatten().tolist()
    assert values == pytest.approx([1.1547, -0.5774, -0.5774], abs=1e-3)


@pytest.mark.parametrize(
    ("length", "share", "penalty"),
    [(0, 0.2, 0.0), (80, 0.2, 0.0), (90, 0.2, -0.5), (100, 0.2, -1.0), (100, 0.0, 0.0), (50, 1.0, -0.5)],
)
def test_overlong_penalty(length: int, share: float, penalty: float) -> None:
    assert overlong_penalty(length, 100, share) == pytest.approx(penalty)
