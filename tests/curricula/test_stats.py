"""Posteriors of pass rates: by hand, against a plain loop over the history, and calibrated on drifting prompts."""

from operator import mul

import numpy as np
import pytest

from curricula import stats
from curricula.beta_binomial import log_pmf
from curricula.stats import STAYS, StatsTable
from rollouts.types import Prompt
from tests.benchmarks.calibration import FAMILIES, simulate


def prompts(count: int = 4, capability: str = "math", difficulty: int = 1) -> list[Prompt]:
    return [
        Prompt(f"{capability}{difficulty}-{index}", (), capability, difficulty=difficulty) for index in range(count)
    ]


def posterior(table: StatsTable, row: int, version: int) -> tuple[float, float]:
    alpha, beta = table.posterior(np.array([row]), version)
    return float(alpha[0]), float(beta[0])


def group(solved: int, size: int = 4) -> list[bool]:
    return [index < solved for index in range(size)]


def test_nothing_known_is_the_prior() -> None:
    table = StatsTable(prompts(), 4)
    alpha, beta = posterior(table, 2, 7)
    assert (alpha, beta) == pytest.approx((table.priors.alpha_K[0], table.priors.beta_K[0]))
    assert table.view(2, 7).pass_rate == pytest.approx(0.5)
    pmf = np.exp(log_pmf(np.array(alpha), np.array(beta), 4))
    assert table.predict(np.array([2]), 7)[0] == pytest.approx(pmf)


def test_one_group_by_hand() -> None:
    """Two beliefs: the evidence added to the prior, and the move from such a last group."""
    table = StatsTable(prompts(), 4, decays=(0.9,))
    table.observe([(1, group(1), 3)])
    prior = float(table.priors.alpha_K[0]), float(table.priors.beta_K[0])
    assert prior[0] < prior[1]  # a prompt never drawn takes its prior from its kind
    assert posterior(table, 0, 3) == pytest.approx(prior)
    moved = float(table.moves.alpha_K[1]), float(table.moves.beta_K[1])
    beliefs = [(prior[0] + 1 * 0.9**2, prior[1] + 3 * 0.9**2), moved]
    means = [alpha / (alpha + beta) for alpha, beta in beliefs]
    squares = [mean * (1 - mean) / (sum(belief) + 1) + mean**2 for mean, belief in zip(means, beliefs, strict=True)]
    weights = (STAYS, 1 - STAYS)
    mean, square = (sum(map(mul, weights, each)) for each in (means, squares))
    variance = square - mean**2
    alpha, beta = posterior(table, 1, 5)
    assert alpha / (alpha + beta) == pytest.approx(mean)
    assert mean * (1 - mean) / (alpha + beta + 1) == pytest.approx(variance)
    view = table.view(1, 5)
    assert (view.prompt_id, view.attempts, view.solves, view.last_version) == ("math1-1", 4, 1, 3)
    parts = [np.exp(log_pmf(np.array(alpha), np.array(beta), 4)) for alpha, beta in beliefs]
    expected = sum(map(mul, weights, parts))
    assert table.predict(np.array([1]), 5)[0] == pytest.approx(expected)


def test_kinds_are_capability_difficulty_and_source() -> None:
    other = Prompt("s", (), "math", difficulty=1, source="x")
    table = StatsTable([*prompts(40), *prompts(1, difficulty=2), *prompts(1, "code"), other], 4)
    table.observe([(row, group(4), 0) for row in range(39)])
    own, difficulty, code, source = (table.view(row, 0).pass_rate for row in (39, 40, 41, 42))
    assert own > 0.9
    assert code == pytest.approx(0.5)
    assert difficulty == pytest.approx(source)  # they lean on their capability
    assert 0.5 < source < own


def test_random_history_against_a_loop() -> None:
    """Evidence of each decay, and the weights of the beliefs, one group at a time."""
    rng = np.random.default_rng(0)
    table = StatsTable(prompts(5), 4, decays=(1.0, 0.9))
    history: list[tuple[int, int, int]] = []
    weights, pooled = np.tile((STAYS / 2, STAYS / 2, 1 - STAYS), (5, 1)), np.array((STAYS / 2, STAYS / 2, 1 - STAYS))
    for version in range(30):
        for _ in range(rng.integers(0, 4)):
            row, solved = int(rng.integers(5)), int(rng.binomial(4, 0.4))
            own = [(then, count) for other, then, count in history if other == row]
            if own:
                beliefs = [
                    (
                        table.priors.alpha_K[0] + sum(decay ** (version - then) * count for then, count in own),
                        table.priors.beta_K[0] + sum(decay ** (version - then) * (4 - count) for then, count in own),
                    )
                    for decay in (1.0, 0.9)
                ] + [(table.moves.alpha_K[own[-1][1]], table.moves.beta_K[own[-1][1]])]
                before = weights[row] ** stats.MEMORY * pooled ** (1 - stats.MEMORY)
                likelihood = [np.exp(log_pmf(np.array(a), np.array(b), 4)[solved]) for a, b in beliefs]
                weights[row] = before * likelihood / (before * likelihood).sum()
                pooled += stats.LEARNING_RATE * (weights[row] - pooled)
            history.append((row, version, solved))
            table.observe([(row, group(solved), version)])
            assert table.weight_PB[row] == pytest.approx(weights[row], abs=1e-5)
    assert table.weight_CB[0] == pytest.approx(pooled, abs=1e-5)
    assert pooled.std() > 0.005  # they have moved
    for row in range(5):
        own = [(then, count) for other, then, count in history if other == row]
        newest = max(then for then, _ in own)
        assert table.seen_PD[row] == pytest.approx([sum(d ** (newest - then) * 4 for then, _ in own) for d in (1, 0.9)])
        view = table.view(row, 40)
        assert (view.attempts, view.solves) == (4 * len(own), sum(count for _, count in own))


def test_groups_together_are_as_one_after_the_other() -> None:
    """But for the priors, which are the same throughout; a row that occurs twice is entered in order."""
    rng = np.random.default_rng(1)
    groups = [(int(row), group(int(rng.binomial(4, 0.5))), 3) for row in (*range(6), 2, 2, 5)]
    together, single = StatsTable(prompts(8), 4), StatsTable(prompts(8), 4)
    together.observe(groups)
    for each in groups:
        single.observe([each])
    for name in ("attempts_P", "solves_P", "last_P", "version_P", "seen_PD", "solved_PD"):
        np.testing.assert_array_equal(getattr(together, name), getattr(single, name))
    assert together.weight_PB == pytest.approx(single.weight_PB, abs=0.15)


def test_old_evidence_gives_way() -> None:
    table = StatsTable(prompts(1), 8)
    table.observe([(0, group(0, 8), 0), (0, group(0, 8), 1)])
    before = table.view(0, 1).pass_rate
    table.observe([(0, group(8, 8), 60)])
    assert before < 0.15
    assert table.view(0, 60).pass_rate > 0.5


def test_uncertainty_grows_with_age() -> None:
    table = StatsTable(prompts(1), 8, decays=(0.99,))
    for version in range(6):
        table.observe([(0, group(4, 8), version)])
    low, high = table.interval(np.array([0]), 6, 0.9)
    later_low, later_high = table.interval(np.array([0]), 300, 0.9)
    assert later_high[0] - later_low[0] > 1.2 * (high[0] - low[0])


def test_an_interval_holds_its_share_of_the_draws() -> None:
    table = StatsTable(prompts(3), 8)
    for version in range(3):
        table.observe([(0, group(0, 8), version), (1, group(3 * version, 8), version)])
    rng, rows = np.random.default_rng(0), np.arange(3)
    draws = table.sample(rows, 5, rng, 20_000).T
    low, high = table.interval(rows, 5, 0.9)
    assert (draws < low).mean(axis=0) == pytest.approx([0.05] * 3, abs=0.007)
    assert (draws > high).mean(axis=0) == pytest.approx([0.05] * 3, abs=0.007)


def test_an_outcome_that_arrives_late_does_not_turn_time_back() -> None:
    table = StatsTable(prompts(1), 2, decays=(0.5,))
    table.observe([(0, [True, True], 5)])
    table.observe([(0, [False, False], 3)])
    assert table.view(0, 5).last_version == 5
    assert table.seen_PD[0] == pytest.approx([4])
    assert table.solved_PD[0] == pytest.approx([2])


@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_under_drift(family: str) -> None:
    """One seed of `make bench NAME=calibration`, hence the wider margins."""
    found = simulate(family, seed=7)
    assert 0.84 < found["coverage"] < 0.96
    assert found["log_loss"] < found["log_loss_of_last_group"] - 0.1


def test_state_fits_another_order_of_prompts() -> None:
    rows = prompts(6)
    table = StatsTable(rows, 4)
    for version in range(12):
        table.observe([(4, group(2), version), (1, group(4), version)])
    state = table.state_dict()

    same = StatsTable(rows, 4)
    kept, places = same.load_state_dict(state)
    assert kept.tolist() == places.tolist() == list(range(6))
    assert all(same.view(row, 16) == table.view(row, 16) for row in range(6))

    changed = StatsTable([Prompt("new", (), "code"), Prompt("new2", (), "math", difficulty=1), rows[4], rows[0]], 4)
    kept, places = changed.load_state_dict(state)  # 1 is gone
    assert sorted(zip(kept.tolist(), places.tolist(), strict=True)) == [(2, 4), (3, 0)]
    assert changed.view(2, 16) == table.view(4, 16)
    assert changed.view(1, 16).attempts == 0
    assert changed.view(1, 16).pass_rate == pytest.approx(table.view(0, 16).pass_rate)  # the kind's prior came along
    assert changed.view(0, 16).pass_rate == pytest.approx(0.5)


def test_state_of_another_group_size_keeps_the_evidence() -> None:
    table = StatsTable(prompts(3), 4)
    table.observe([(0, group(3), 0), (1, group(1), 0)])
    other = StatsTable(prompts(3), 8)
    other.load_state_dict(table.state_dict())
    assert other.view(0, 0).attempts == 4
    assert other.last_P.tolist() == [6, 2, 0]
    assert other.view(0, 0).pass_rate > other.view(1, 0).pass_rate + 0.1
    other.observe([(0, group(8, 8), 1)])
    assert other.view(0, 1).solves == 11
