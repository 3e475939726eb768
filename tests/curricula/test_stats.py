"""Beta posteriors with fading evidence, against a plain loop over the history."""

import json

import numpy as np
import pytest

from curricula.stats import StatsTable
from rollouts.types import Prompt


def prompts(count: int = 4, capability: str = "math", difficulty: int = 1) -> list[Prompt]:
    return [
        Prompt(f"{capability}{difficulty}-{index}", (), capability, difficulty=difficulty) for index in range(count)
    ]


def posterior(table: StatsTable, row: int, version: int) -> tuple[float, float]:
    alpha, beta = table.posterior(np.array([row]), version)
    return float(alpha[0]), float(beta[0])


def test_nothing_known_is_an_even_prior() -> None:
    table = StatsTable(prompts(), prior_strength=2.0)
    assert posterior(table, 2, 7) == (1.0, 1.0)
    assert table.view(2, 7).pass_rate == 0.5


def test_one_group_by_hand() -> None:
    table = StatsTable(prompts(), prior_strength=2.0)
    table.observe(1, [True, False, False, False], version=3)
    mean = (1 + 1) / (4 + 2)
    assert posterior(table, 1, 3) == pytest.approx((1 + 2 * mean, 3 + 2 * (1 - mean)))
    # A prompt never drawn takes its prior from its kind.
    assert posterior(table, 0, 3) == pytest.approx((2 * mean, 2 * (1 - mean)))
    view = table.view(1, 3)
    assert (view.prompt_id, view.attempts, view.solves, view.last_version) == ("math1-1", 4, 1, 3)
    assert view.pass_rate == pytest.approx((1 + 2 * mean) / 6)


def test_kinds_are_capability_difficulty_and_source() -> None:
    rows = [
        *prompts(1),
        *prompts(1, difficulty=2),
        *prompts(1, "code"),
        Prompt("s", (), "math", difficulty=1, source="x"),
    ]
    table = StatsTable(rows, prior_strength=2.0)
    table.observe(0, [True] * 8, version=0)
    assert posterior(table, 1, 0) == posterior(table, 2, 0) == posterior(table, 3, 0) == (1.0, 1.0)


def test_random_history_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    table = StatsTable(prompts(5), decay=0.9, prior_strength=3.0)
    history: list[tuple[int, int, list[bool]]] = []
    for version in range(30):
        for _ in range(rng.integers(0, 4)):
            row, outcomes = int(rng.integers(5)), [bool(value) for value in rng.random(4) < 0.4]
            history.append((row, version, outcomes))
            table.observe(row, outcomes, version)
    newest = max(version for _, version, _ in history)
    kind_seen = sum(0.9 ** (newest - version) * len(outcomes) for _, version, outcomes in history)
    kind_solved = sum(0.9 ** (newest - version) * sum(outcomes) for _, version, outcomes in history)
    mean = (kind_solved + 1) / (kind_seen + 2)
    for row in range(5):
        own = [(version, outcomes) for other, version, outcomes in history if other == row]
        solved = sum(0.9 ** (40 - version) * sum(outcomes) for version, outcomes in own)
        failed = sum(0.9 ** (40 - version) * (len(outcomes) - sum(outcomes)) for version, outcomes in own)
        assert posterior(table, row, 40) == pytest.approx((solved + 3 * mean, failed + 3 * (1 - mean)))
        assert table.view(row, 40).attempts == sum(len(outcomes) for _, outcomes in own)
        assert table.view(row, 40).solves == sum(sum(outcomes) for _, outcomes in own)


def test_old_evidence_gives_way() -> None:
    table = StatsTable(prompts(1), decay=0.9)
    table.observe(0, [False] * 16, version=0)
    before = table.view(0, 0).pass_rate
    table.observe(0, [True] * 8, version=30)
    assert before < 0.1
    assert table.view(0, 30).pass_rate > 0.7


def test_an_outcome_that_arrives_late_does_not_turn_time_back() -> None:
    table = StatsTable(prompts(1), decay=0.5)
    table.observe(0, [True, True], version=5)
    table.observe(0, [False, False], version=3)
    assert table.view(0, 5).last_version == 5
    assert table.seen_P[0] == 4
    assert table.solved_P[0] == 2


def test_state_survives_json_and_another_order_of_prompts() -> None:
    rows = prompts(6)
    table = StatsTable(rows)
    table.observe(4, [True, False], version=2)
    table.observe(1, [True, True], version=3)
    state = json.loads(json.dumps(table.state_dict()))
    assert state["prompt_ids"] == ["math1-1", "math1-4"]

    same = StatsTable(rows)
    same.load_state_dict(state)
    assert all(same.view(row, 6) == table.view(row, 6) for row in range(6))

    changed = StatsTable([Prompt("new", (), "math", difficulty=1), rows[4], rows[0]])  # 1 is gone
    changed.load_state_dict(state)
    assert changed.view(1, 6) == table.view(4, 6)
    assert changed.view(0, 6).attempts == 0
    assert changed.view(0, 6).pass_rate == pytest.approx(table.view(0, 6).pass_rate)  # the kind's prior came along
