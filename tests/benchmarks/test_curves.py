"""Curves, what is compared of them, and the skewed set."""

import math
from collections import Counter

import pytest

from curricula.datasets import load_prompts
from judges.scorer import load_scorer
from posttrain.config import load_config, resolve_data
from rollouts.types import Rollout
from tests.benchmarks import skewed
from tests.benchmarks.curriculum import compared
from tests.benchmarks.curves import Setting, best_settings, reached, smoothed
from tests.benchmarks.harness import Measurement


def run(*rates: float, tokens: int = 100) -> Measurement:
    """A run with an evaluation every so many tokens."""
    return {"tokens": [tokens * step for step in range(len(rates))], "pass@1": list(rates), "mixed": 0.5, "drawn": 9}


def test_smoothing_takes_up_to_two_neighbours_on_either_side() -> None:
    assert smoothed([1, 2, 3, 4, 5, 60]) == pytest.approx([2, 2.5, 3, 14.8, 18, 23])


def test_reached_is_between_two_points_on_a_line() -> None:
    assert reached([0, 100, 200], [0.4, 0.6, 0.5], 0.55) == pytest.approx(75)
    assert reached([0, 100], [0.4, 0.6], 0.3) == 0
    assert reached([0, 100], [0.4, 0.6], 0.7) is None


def test_the_best_rate_ends_highest_for_the_reference_and_is_the_quickest_for_others() -> None:
    low, high = Setting(6, 1e-4), Setting(6, 3e-4)
    swept = {
        "uniform": {low: run(0.4, 0.4, 0.5), high: run(0.4, 0.5, 0.6)},
        "signal": {low: run(0.4, 0.5, 0.6, 0.7), high: run(0.4, 0.6, 0.7, 0.6)},
        "pools": {low: run(0.4, 0.42), high: run(0.4, 0.41)},  # neither reaches it
    }
    assert best_settings(swept, "uniform", "tokens") == {"uniform": high, "signal": high, "pools": low}


def test_a_setting_as_overrides() -> None:
    assert Setting(6, 2e-4).overrides(1152) == [
        "rl.prompts_per_step=6", "rl.learning_rate=0.0002", "rl.steps=192",
    ]  # fmt: skip


def test_tokens_are_compared_up_to_the_end_of_uniform() -> None:
    rising, flat = [0.1 * step for step in range(9)], [0.1] * 9
    found = compared({"uniform": [run(*rising)], "pools": [run(*flat)], "signal": [run(*rising, tokens=50)]})
    assert found["tokens"] == {"uniform": [pytest.approx(800)], "pools": [None], "signal": [pytest.approx(400)]}
    assert found["ratios"]["uniform"] == pytest.approx([0.5])
    assert found["ratios"]["pools"] == pytest.approx([400 / 800])  # of what it had, which is too few
    found = compared({"uniform": [run(*rising)], "signal": [run(*flat)]})
    assert found["ratios"]["uniform"] == [math.inf]


def test_the_shares_of_the_skewed_set() -> None:
    prompts = load_prompts(resolve_data("tiny:rl"))
    counts = Counter(map(skewed.part, prompts))
    shares = {part: count / len(prompts) for part, count in counts.items()}
    assert shares == pytest.approx({"solved": 0.6, "unsolvable": 0.3, "useful": 0.1}, abs=0.02)
    assert {skewed.part(prompt) for prompt in load_prompts(resolve_data("tiny:heldout"))} == {"useful"}


def test_what_is_said_counts_for_useful_prompts_alone() -> None:
    prompts = load_prompts(resolve_data("tiny:rl"))
    scorer, wrong = load_scorer(skewed.NAME), Rollout([1], [True], [0.0], [], "stop", "no answer")
    first = {skewed.part(prompt): prompt for prompt in prompts}
    outcomes = {part: scorer(prompt, [wrong])[0].outcome for part, prompt in first.items()}
    assert outcomes == {"solved": True, "unsolvable": False, "useful": False}
    assert load_config("tiny", [f"reward={skewed.NAME}"]).reward == skewed.NAME
