"""Which prompt is drawn."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from curricula.curriculum import Curriculum
from curricula.gate import rejection
from curricula.sampler import FILE, PromptSampler
from curricula.selection import together
from curricula.signal import DUE, EASY, HARD, MEDIUM, SOLVED, UNSEEN, UNSOLVED, Signal
from curricula.snapshot import Snapshots
from posttrain.config.schema import CurriculumConfig
from rollouts.errors import CheckpointError
from rollouts.types import Prompt
from tests.benchmarks.selection import simulate

SELECTIONS = ("signal", "pools", "dynamic_sampling", "uniform")


def prompts(**counts: int) -> list[Prompt]:
    return [Prompt(f"{name}-{index}", (), name) for name, count in counts.items() for index in range(count)]


def group(solved: int, size: int = 8) -> list[bool]:
    return [index < solved for index in range(size)]


def signal(sampler: PromptSampler) -> Signal:
    assert isinstance(sampler.selection, Signal)
    return sampler.selection


def teach(sampler: PromptSampler, row: int, solved: Sequence[int], version: int = 0) -> None:
    """Groups of a prompt that was not drawn."""
    for count in solved:
        sampler.observe(row, group(count), version)


# ----------------------------------------------------------------------------------------------------- in flight


@pytest.mark.parametrize("selection", SELECTIONS)
def test_draws_the_asked_capability_and_nothing_twice_while_in_flight(selection: str) -> None:
    sampler = PromptSampler(prompts(math=60, code=20), selection, group_size=4, seed=0)
    assert sampler.capabilities == ["math", "code"]
    code = [sampler.draw("code", 0) for _ in range(20)]
    assert sorted(code) == list(range(60, 80))  # all of them, though the last was one of twenty
    math = [sampler.draw("math", 0) for _ in range(60)]
    assert sorted(math) == list(range(60))


@pytest.mark.parametrize("selection", SELECTIONS)
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


@pytest.mark.parametrize("selection", SELECTIONS)
def test_in_a_large_set_draws_are_entered_together_and_none_is_lost(selection: str) -> None:
    sampler = PromptSampler(prompts(math=3000, code=1000), selection, group_size=4, seed=0)
    assert together(4000) == 15
    in_flight: list[int] = []
    for index in range(4000):
        row = sampler.draw(("math", "code")[index % 2], index // 100)
        assert row not in in_flight
        in_flight.append(row)
        if len(in_flight) == 90:
            sampler.observe(in_flight.pop(0), group(index % 5, 4), index // 100)
    assert sampler.stats.attempts_P.sum() == 4 * (4000 - len(in_flight))
    waiting = [row for rows in sampler.selection.sets.sets for row in rows]
    assert sorted(waiting + in_flight) == list(range(4000))


# ----------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("selection", ["uniform", "dynamic_sampling"])
def test_uniform_ignores_the_outcomes(selection: str) -> None:
    sampler = PromptSampler(prompts(math=40), selection, group_size=4, seed=1)
    drawn: Counter[int] = Counter()
    for _ in range(4000):
        row = sampler.draw("math", 0)
        drawn[row] += 1
        sampler.observe(row, [row % 2 == 0] * 4, 0)
    counts = np.array([drawn[row] for row in range(40)])
    assert np.abs(counts - 100).max() < 45  # 4.5 standard deviations of a binomial
    assert sampler.stats.attempts_P.tolist() == (4 * counts).tolist()


def test_pools_are_drawn_in_their_shares() -> None:
    rows = prompts(math=90)
    sampler = PromptSampler(rows, "pools", 8, 0, Curriculum(easy_pool=0.2, hard_pool=0.05))
    for row in range(90):
        teach(sampler, row, [4, (0, 4, 8)[row % 3]])
    drawn: Counter[int] = Counter()
    for _ in range(4000):
        row = sampler.draw("math", 0)
        drawn[row % 3] += 1
        sampler.observe(row, None, 0)
    assert drawn[0] / 4000 == pytest.approx(0.05, abs=0.015)
    assert drawn[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn[2] / 4000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("solved", "shares"),
    [((0, 8), {0: 1 / 5, 8: 4 / 5}), ((0, 4), {0: 1 / 6, 4: 5 / 6}), ((4, 8), {4: 5 / 9, 8: 4 / 9}), ((0,), {0: 1})],
)
def test_the_share_of_an_empty_pool_goes_to_the_others_in_proportion(
    solved: tuple[int, ...], shares: dict[int, float]
) -> None:
    sampler = PromptSampler(prompts(math=60), "pools", 8, 0, Curriculum(easy_pool=0.4, hard_pool=0.1))
    for row in range(60):
        teach(sampler, row, [solved[row % len(solved)]])
    drawn: Counter[int] = Counter()
    for _ in range(4000):
        row = sampler.draw("math", 0)
        drawn[solved[row % len(solved)]] += 1
        sampler.observe(row, None, 0)
    assert {pool: count / 4000 for pool, count in drawn.items()} == pytest.approx(shares, abs=0.035)


# -------------------------------------------------------------------------------------------------------- signal


@pytest.mark.parametrize(("name", "prompts"), [("skewed", 600), ("broad", 600), ("large", 6000)])
def test_most_of_the_drawn_groups_are_mixed(name: str, prompts: int) -> None:
    """A small form of `make bench NAME=selection`."""
    size = {"prompts": prompts, "versions": 100, "groups": 24}
    found = {selection: simulate(selection, name, 3, **size)["mixed"] for selection in ("uniform", "signal")}
    assert found["signal"] > 0.7
    assert found["uniform"] < (0.78 if name == "broad" else 0.15)


def test_buckets_with_hysteresis() -> None:
    sampler = PromptSampler(prompts(math=60), "signal", 8, 0)
    for row in range(6):
        teach(sampler, row, [(0, 1, 4, 6, 8, 7)[row]] * 12)
    bucket_P = signal(sampler).bucket_P
    assert bucket_P[:7].tolist() == [UNSOLVED, HARD, MEDIUM, MEDIUM, SOLVED, EASY, UNSEEN]
    for row, edge in ((10, 0.28), (11, 0.32), (12, 0.28), (13, 0.32)):  # within the margin around 0.3
        solved = np.diff(np.round(np.arange(201) * edge * 8)).astype(int).tolist()
        teach(sampler, row, solved[:-1])
        bucket_P[row] = HARD if row < 12 else MEDIUM
        teach(sampler, row, solved[-1:])
        assert sampler.stats.view(row, 0).pass_rate == pytest.approx(edge, abs=0.015)
    assert bucket_P[10:14].tolist() == [HARD, HARD, MEDIUM, MEDIUM]


def test_retired_prompts_come_back_ever_more_rarely() -> None:
    """Solved ones are tested again after 10 versions, then 20, 40, and so on; when they are forgotten they return."""
    sampler = PromptSampler(prompts(math=20), "signal", 8, 0, Curriculum(retest_after=10, retest_share=0.5))
    for row in range(20):
        teach(sampler, row, [8] * 5 if row < 10 else [4] * 5)
    assert signal(sampler).bucket_P[:10].tolist() == [SOLVED] * 10
    tested: dict[int, list[int]] = {row: [0] for row in range(10)}
    for version in range(200):
        for _ in range(8):
            row = sampler.draw("math", version)
            if row < 10:
                tested[row].append(version)
            sampler.observe(row, group(8 if row < 10 else 4), version)
    for versions in tested.values():
        gaps = np.diff(versions)
        assert len(gaps) == 4
        assert [int(gap) >= 10 * 2**index for index, gap in enumerate(gaps)] == [True] * 4
        assert sum(gaps) < 180  # and not much later
    for version in range(320, 360):
        for _ in range(8):
            sampler.observe(sampler.draw("math", version), group(4), version)
    assert set(signal(sampler).bucket_P.tolist()) <= {HARD, MEDIUM, EASY}


def test_the_band_moves_from_medium_to_hard() -> None:
    curriculum = Curriculum(band_start=(0.5, 0.75), band_end=(0.1, 0.3), easy_floor=0.0, steps=100)
    sampler = PromptSampler(prompts(math=240), "signal", 8, 0, curriculum)
    rng, rates = np.random.default_rng(0), np.linspace(0.05, 0.95, 240)
    for row in range(240):
        teach(sampler, row, rng.binomial(8, rates[row], 30).tolist())
    drawn = []
    for version in (0, 50, 100, 150):
        found = []
        for _ in range(300):
            row = sampler.draw("math", version)
            found.append(rates[row])
            sampler.observe(row, None, version)
        drawn.append(float(np.mean(found)))
    assert 0.5 < drawn[0] < 0.75  # of the band, the rates near a half have the highest signal
    assert drawn[1] < drawn[0] - 0.03
    assert 0.1 < drawn[2] < 0.3
    assert drawn[2] == pytest.approx(drawn[3], abs=0.05)  # beyond the last step it stays
    assert curriculum.band(0) == (0.5, 0.75)
    assert curriculum.band(50) == pytest.approx((0.3, 0.525))


def test_the_easy_floor_is_a_share_of_the_draws() -> None:
    """Easy means below 1: solved prompts have no gradient, and are drawn only to be tested again."""
    curriculum = Curriculum(easy_floor=0.25, band_start=(0.2, 0.5))
    sampler = PromptSampler(prompts(math=90), "signal", 8, 0, curriculum)
    for row in range(90):
        teach(sampler, row, [(3, 7, 8)[row % 3]] * 8)
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        row = sampler.draw("math", 0)
        drawn[row % 3] += 1
        sampler.observe(row, None, 0)
    assert drawn[1] / 2000 == pytest.approx(0.25, abs=0.04)
    assert drawn[2] == 0


def test_unseen_prompts_are_explored_as_far_as_their_kind_gives_hope() -> None:
    """Two kinds with known prompts of their own, one all or nothing, one mixed: new prompts of the second are drawn."""
    rows = [Prompt(str(index), (), "math", source=("dull", "rich")[index % 2]) for index in range(400)]
    sampler = PromptSampler(rows, "signal", 8, 0)
    for row in range(200):
        teach(sampler, row, [4 if row % 2 else (0, 8)[row // 2 % 2]])
    new: Counter[int] = Counter()
    for _ in range(60):
        row = sampler.draw("math", 0)
        new[row % 2] += row >= 200
    assert new[1] > 3 * new[0]
    assert new[1] >= 10


@pytest.mark.parametrize(("novelty", "least", "most"), [(0.0, 0.0, 0.5), (1.0, 0.9, 1.0)])
def test_of_prompts_that_teach_alike_those_drawn_seldom_come_first(novelty: float, least: float, most: float) -> None:
    sampler = PromptSampler(prompts(math=120), "signal", 8, 0, Curriculum(novelty=novelty, easy_floor=0))
    for row in range(120):
        teach(sampler, row, [4] * (10 if row % 2 else 60))
    seldom = []
    for _ in range(300):
        row = sampler.draw("math", 0)
        seldom.append(row % 2)
        sampler.observe(row, None, 0)
    assert least <= float(np.mean(seldom)) <= most


def test_luck_counts_early_only() -> None:
    """One prompt in ten of those never drawn is of use: beside a hundred that are, they are drawn while it pays."""
    rows = [Prompt(str(row), (), "math", source="rich" if 200 <= row < 300 else "poor") for row in range(400)]
    drawn = []
    for version in (0, 100):
        sampler = PromptSampler(rows, "signal", 8, 0, Curriculum(steps=200))
        for row in range(200):
            teach(sampler, row, [4] if row < 20 else [8 * (row % 2)])  # what unseen prompts are like
        for row in range(200, 300):
            teach(sampler, row, [4, 4, 4])
        new = 0
        for _ in range(300):
            row = sampler.draw("math", version)
            new += row >= 300
            sampler.observe(row, None, version)
        drawn.append(new)
    assert drawn[0] > 60 > 4 * drawn[1]


def test_without_outcomes_nothing_is_learnt() -> None:
    sampler = PromptSampler(prompts(math=5), "signal", group_size=4, seed=0)
    before = sampler.stats.state_dict()
    sampler.observe(sampler.draw("math", 0), None, 0)
    for name, column in sampler.stats.state_dict().items():
        np.testing.assert_array_equal(column, before[name])


# --------------------------------------------------------------------------------------------------------- state


def run(sampler: PromptSampler, versions: range, capabilities: Sequence[str], seed: int = 0) -> list[int]:
    """Draws and observes; prompt i is solved with a rate of its own."""
    drawn = []
    for version in versions:
        for index in range(12):
            row = sampler.draw(capabilities[index % len(capabilities)], version)
            drawn.append(row)
            rng = np.random.default_rng((seed, version, row))
            sampler.observe(row, group(int(rng.binomial(8, (row * 7 % 11) / 10))), version)
    return drawn


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("size", [60, 1500])
def test_a_restored_sampler_draws_as_one_that_went_on(tmp_path: Path, selection: str, size: int) -> None:
    rows = prompts(math=size, code=size // 2)
    one = PromptSampler(rows, selection, group_size=8, seed=0)
    run(one, range(40), ["math", "code"])
    one.save(tmp_path)
    other = PromptSampler(rows, selection, group_size=8, seed=9)
    restored = other.load(tmp_path)
    assert (restored.kept, restored.removed, restored.new) == (size + size // 2, 0, 0)
    expected = run(one, range(40, 80), ["math", "code"])
    assert run(other, range(40, 80), ["math", "code"]) == expected
    assert len(set(expected)) > 20


class Busy:
    """Draws and observes with several draws in flight, each step the same for the same seed."""

    def __init__(self, sampler: PromptSampler) -> None:
        self.sampler, self.drawn = sampler, list[int]()
        self.under_way: list[tuple[int, int]] = []  # row, version

    def step(self, number: int) -> None:
        """A draw, and the end of up to two that are in flight; a new version at every 40th step."""
        version, rng = number // 40, np.random.default_rng(number)
        row = self.sampler.draw("math" if number % 3 else "code", version)
        self.drawn.append(row)
        self.under_way.append((row, version))
        for _ in range(int(rng.integers(3)) if len(self.under_way) > 8 else 0):
            done, drawn_at = self.under_way.pop(int(rng.integers(len(self.under_way))))
            seen = 8 if number % 4 else 3  # some are given up early
            outcomes = group(int(rng.binomial(seen, (done * 7 % 11) / 10)), seen)
            self.sampler.observe(done, None if number % 17 == 0 else outcomes, drawn_at)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("size", [60, 1500])
def test_draws_do_not_depend_on_when_checkpoints_are_taken(tmp_path: Path, selection: str, size: int) -> None:
    rows = prompts(math=size, code=size // 2)
    samplers = [PromptSampler(rows, selection, group_size=8, seed=0) for _ in range(2)]
    alone, saved = (Busy(sampler) for sampler in samplers)
    chance = np.random.default_rng(5)
    for number in range(1200):
        alone.step(number)
        saved.step(number)
        if chance.random() < 0.1:
            saved.sampler.save(tmp_path)
    assert saved.drawn == alone.drawn
    # One that is restored in between, with what is under way, goes on as they do.
    saved.sampler.save(tmp_path)
    restored = Busy(PromptSampler(rows, selection, group_size=8, seed=9))
    restored.sampler.load(tmp_path)
    Snapshots(restored.sampler)
    restored.drawn, restored.under_way = list(saved.drawn), list(saved.under_way)
    for row, _ in restored.under_way:
        restored.sampler.hold(row)
    for number in range(1200, 2000):
        alone.step(number)
        restored.step(number)
    assert restored.drawn == alone.drawn
    for name, column in alone.sampler.stats.state_dict().items():
        np.testing.assert_array_equal(restored.sampler.stats.state_dict()[name], column, err_msg=name)


def test_a_state_without_what_was_chosen_ahead_is_read(tmp_path: Path) -> None:
    """As an older version wrote it."""
    rows = prompts(math=60)
    one = PromptSampler(rows, "signal", group_size=8, seed=0)
    run(one, range(10), ["math"])
    older = {name: column for name, column in one.state_dict().items() if not name.startswith(("priors/", "moves/"))}
    sampler = json.loads(str(older["sampler"]))
    del sampler["ahead"], sampler["finished"]
    other = PromptSampler(rows, "signal", group_size=8, seed=0)
    other.load_state_dict({**older, "sampler": np.array(json.dumps(sampler))})
    np.testing.assert_array_equal(other.stats.attempts_P, one.stats.attempts_P)
    one.stats.priors.fit()
    np.testing.assert_array_equal(other.stats.priors.alpha_K, one.stats.priors.alpha_K)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_prompts_in_flight_when_saved_are_free_when_restored(tmp_path: Path, selection: str) -> None:
    rows = prompts(math=30)
    one = PromptSampler(rows, selection, group_size=8, seed=0)
    for _ in range(10):
        one.draw("math", 0)
    one.save(tmp_path)
    other = PromptSampler(rows, selection, group_size=8, seed=0)
    other.load(tmp_path)
    assert sorted(other.draw("math", 0) for _ in range(30)) == list(range(30))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_another_dataset_on_resume(tmp_path: Path, selection: str) -> None:
    """Removed prompts are dropped with a count, new ones are unseen, an edited one is a removed and a new one."""
    rows = prompts(math=40, code=40)
    one = PromptSampler(rows, selection, group_size=8, seed=0)
    run(one, range(30), ["math", "code"])
    one.save(tmp_path)
    kept = [prompt for index, prompt in enumerate(rows) if index % 4]
    edited = [Prompt(f"{prompt.prompt_id}'", (), prompt.capability) for prompt in rows[:80:8]]
    changed = [*edited, *reversed(kept), *prompts(chat=5)]  # the capabilities' order has changed too
    other = PromptSampler(changed, selection, group_size=8, seed=0)
    restored = other.load(tmp_path)
    assert str(restored) == "60 go on, 20 are gone, 15 are new and count as never drawn"
    numbers = {prompt.prompt_id: index for index, prompt in enumerate(rows)}
    for row, prompt in enumerate(changed):
        before = numbers.get(prompt.prompt_id)
        assert other.stats.attempts_P[row] == (0 if before is None else one.stats.attempts_P[before])
    if selection == "signal":
        buckets = {prompt.prompt_id: signal(one).bucket_P[row] for row, prompt in enumerate(rows)}
        expected = [buckets.get(prompt.prompt_id, UNSEEN) for prompt in changed]
        assert signal(other).bucket_P.tolist() == expected
    for capability in ("math", "code", "chat"):
        own = [row for row, prompt in enumerate(changed) if prompt.capability == capability]
        assert sorted(other.draw(capability, 30) for _ in own) == own


def test_another_selection_on_resume_keeps_the_statistics(tmp_path: Path) -> None:
    rows = prompts(math=40)
    one = PromptSampler(rows, "uniform", group_size=8, seed=0)
    run(one, range(20), ["math"])
    one.save(tmp_path)
    other = PromptSampler(rows, "signal", group_size=8, seed=0)
    other.load(tmp_path)
    np.testing.assert_array_equal(one.stats.attempts_P, other.stats.attempts_P)
    sets = signal(other).sets.sets
    assert sorted(row for rows in sets for row in rows) == list(range(40))
    assert len(sets[UNSEEN]) == int((one.stats.attempts_P == 0).sum())
    assert len(sets[SOLVED]) + len(sets[UNSOLVED]) > 0 == len(sets[DUE])


def test_a_state_that_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    sampler = PromptSampler(prompts(math=5), "signal", group_size=8, seed=0)
    with pytest.raises(CheckpointError, match=r"sampler\.npz: no state of a sampler .*; choose another checkpoint"):
        sampler.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"PK not a zip file")
    with pytest.raises(CheckpointError, match=r"sampler\.npz"):
        sampler.load(tmp_path)


def test_the_configuration_has_the_same_defaults() -> None:
    section = Curriculum(**CurriculumConfig().model_dump())
    assert section == Curriculum(band_start=[0.2, 0.95], band_end=[0.05, 0.95])
    assert tuple(section.band_start) == Curriculum().band_start
    assert tuple(section.band_end) == Curriculum().band_end


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
