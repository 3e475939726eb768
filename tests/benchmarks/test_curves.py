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
from tests.benchmarks.curves import Grid, Setting, climb, ending, evaluated, reached, reaching, smoothed, sweep_all
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


GRID = Grid((6, 16, 32), (1e-4, 2e-4, 4e-4))


def test_the_reference_takes_what_ends_highest_and_others_what_reaches_its_best_end_soonest() -> None:
    assert ending(run(0.4, 0.5, 0.6)) < ending(run(0.4, 0.4, 0.5))
    soon, late, near, far = run(0.4, 0.6, 0.6, 0.6), run(0.4, 0.5, 0.5, 0.7), run(0.4, 0.45), run(0.4, 0.41)
    costs = [reaching(0.54, "tokens")(each) for each in (soon, late, near, far)]
    assert costs == sorted(costs)
    assert [cost[0] for cost in costs[2:]] == [math.inf, math.inf]


def test_a_sweep_climbs_to_what_has_no_better_neighbour_and_measures_little_else() -> None:
    heights = {Setting(prompts, rate): rate * prompts for prompts in (6, 16) for rate in GRID.learning_rate[:2]}
    measured: list[Setting] = []

    def measure(setting: Setting) -> Measurement:
        measured.append(setting)
        return run(heights.get(setting, 0.0))

    found = climb(GRID, Setting(6, 1e-4), measure, ending)
    assert found is not None
    assert found.best == Setting(16, 2e-4)
    assert found.at_edge == []
    assert measured == [
        Setting(6, 1e-4), Setting(6, 2e-4), Setting(6, 4e-4), Setting(16, 2e-4), Setting(16, 4e-4), Setting(16, 1e-4),
        Setting(32, 2e-4),
    ]  # fmt: skip


def test_a_best_setting_at_the_edge_of_what_was_tried_is_told() -> None:
    found = climb(GRID, Setting(16, 2e-4), lambda setting: run(setting.learning_rate / setting.prompts), ending)
    assert found is not None
    assert (found.best, found.at_edge) == (Setting(6, 4e-4), ["prompts", "learning_rate"])
    alone = climb(Grid((6,), (1e-4,)), Setting(6, 1e-4), lambda _: run(0.5), ending)
    assert alone is not None
    assert alone.at_edge == []
    assert list(alone.as_json()["measured"]) == ["6 prompts at 0.0001"]


def test_a_sweep_that_was_cut_off_has_no_best_setting() -> None:
    assert climb(GRID, Setting(16, 2e-4), lambda setting: run(0.5) if setting.prompts > 6 else None, ending) is None


def test_the_other_arms_are_swept_for_the_best_end_of_the_first() -> None:
    runs = {
        "uniform": {1e-4: run(0.4, 0.5), 2e-4: run(0.4, 0.6), 4e-4: run(0.4, 0.3)},
        "signal": {1e-4: run(0.6, 0.6), 2e-4: run(0.4, 0.4), 4e-4: run(0.4, 0.9)},
    }

    def measure(arm: str, setting: Setting) -> Measurement | None:
        return runs[arm][setting.learning_rate] if arm in runs else None

    grid = Grid((6,), (1e-4, 2e-4, 4e-4))
    found = sweep_all(("uniform", "signal", "pools"), grid, Setting(6, 2e-4), measure, "tokens")
    assert {arm: swept.best.learning_rate for arm, swept in found.items()} == {"uniform": 2e-4, "signal": 4e-4}


def test_a_run_ends_with_an_evaluation() -> None:
    assert evaluated(640, 12) == (636, 53)
    assert evaluated(24, 12) == (24, 2)
    assert evaluated(7, 12) == (12, 1)


def test_a_setting_as_overrides() -> None:
    assert Setting(6, 2e-4).overrides() == ["rl.prompts_per_step=6", "rl.learning_rate=0.0002"]


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
