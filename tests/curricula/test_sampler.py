"""Which prompt is drawn."""

import json
from collections import Counter

import numpy as np
import pytest

from curricula.gate import rejection
from curricula.sampler import PromptSampler
from rollouts.types import Prompt


def prompts(**counts: int) -> list[Prompt]:
    return [Prompt(f"{name}-{index}", (), name) for name, count in counts.items() for index in range(count)]


@pytest.mark.parametrize("selection", ["signal", "uniform"])
def test_draws_the_asked_capability_and_nothing_twice_while_in_flight(selection: str) -> None:
    rows = prompts(math=60, code=20)
    sampler = PromptSampler(rows, selection, group_size=4, seed=0)
    assert sampler.capabilities == ["math", "code"]
    code = [sampler.draw("code", 0) for _ in range(20)]
    assert sorted(code) == list(range(60, 80))  # all of them, though the last was one of twenty
    math = [sampler.draw("math", 0) for _ in range(60)]
    assert sorted(math) == list(range(60))


@pytest.mark.parametrize("selection", ["signal", "uniform"])
def test_a_set_smaller_than_what_is_in_flight_is_drawn_twice(selection: str) -> None:
    sampler = PromptSampler(prompts(math=3), selection, group_size=4, seed=0)
    drawn = Counter(sampler.draw("math", 0) for _ in range(12))
    assert set(drawn) == {0, 1, 2}
    twice = next(row for row, count in drawn.items() if count > 1)
    for _ in range(drawn[twice]):
        sampler.observe(twice, None, 0)
    assert sampler.draw("math", 0) == twice  # the only one that is not in flight


def test_a_prompt_drawn_twice_is_in_flight_until_both_are_observed() -> None:
    sampler = PromptSampler(prompts(math=2), "uniform", group_size=4, seed=0)
    drawn = [sampler.draw("math", 0) for _ in range(3)]
    twice = max(set(drawn), key=drawn.count)
    sampler.observe(twice, None, 0)
    sampler.observe(1 - twice, None, 0)
    assert {sampler.draw("math", 0)} == {1 - twice}


def test_uniform_ignores_the_outcomes() -> None:
    sampler = PromptSampler(prompts(math=40), "uniform", group_size=4, seed=1)
    drawn: Counter[int] = Counter()
    for _ in range(4000):
        row = sampler.draw("math", 0)
        drawn[row] += 1
        sampler.observe(row, [row % 2 == 0] * 4, 0)
    counts = np.array([drawn[row] for row in range(40)])
    assert np.abs(counts - 100).max() < 45  # 4.5 standard deviations of a binomial
    assert sampler.stats.attempts_P.tolist() == (4 * counts).tolist()


def test_signal_finds_the_prompts_with_mixed_outcomes() -> None:
    """A fifth of the prompts can teach; drawing by signal gets far more than a fifth of mixed groups."""
    rng = np.random.default_rng(0)
    true = np.repeat([0.0, 0.0, 0.5, 1.0, 1.0], 40)
    mixed = {}
    for selection in ("uniform", "signal"):
        sampler = PromptSampler(prompts(math=200), selection, group_size=8, seed=0)
        found = []
        for index in range(2000):
            row = sampler.draw("math", index // 32)
            outcomes = [bool(value) for value in rng.random(8) < true[row]]
            found.append(rejection(outcomes) is None)
            sampler.observe(row, outcomes, index // 32)
        mixed[selection] = np.mean(found[1000:])
    assert mixed["uniform"] == pytest.approx(0.2, abs=0.05)
    assert mixed["signal"] > 0.8


def test_signal_comes_back_to_a_prompt_whose_policy_has_changed() -> None:
    sampler = PromptSampler(prompts(math=48), "signal", group_size=8, seed=0)
    for row in range(48):
        solved = 4 if row else 0
        for _ in range(4):
            sampler.observe(row, [True] * solved + [False] * (8 - solved), 0)
    late: Counter[int] = Counter()
    for version, draws in ((0, 300), (200, 300)):
        for _ in range(draws):
            row = sampler.draw("math", version)
            late[version] += row == 0
            sampler._in_flight.clear()
    assert late[0] == 0
    assert late[200] > 0


def test_without_outcomes_nothing_is_learnt() -> None:
    sampler = PromptSampler(prompts(math=5), "signal", group_size=4, seed=0)
    before = sampler.stats.state_dict()
    sampler.observe(sampler.draw("math", 0), None, 0)
    assert sampler.stats.state_dict() == before


def test_state_goes_on_where_it_was() -> None:
    rows = prompts(math=100)
    one = PromptSampler(rows, "signal", group_size=4, seed=0)
    for version in range(50):
        one.observe(one.draw("math", version), [True, False, True, True], version)
    other = PromptSampler(rows, "signal", group_size=4, seed=9)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [one.draw("math", 50) for _ in range(20)] == [other.draw("math", 50) for _ in range(20)]


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([True, True], "all_solved"),
        ([False, False, False], "none_solved"),
        ([True, False], None),
        ([False] * 7 + [True], None),
    ],
)
def test_the_gate_asks_outcomes_only(outcomes: list[bool], reason: str | None) -> None:
    assert rejection(outcomes) == reason
