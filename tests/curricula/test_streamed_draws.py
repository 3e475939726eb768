"""Which prompts are drawn with a window on a stream, and which leave it."""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from curricula.curriculum import Curriculum
from curricula.rows import Row
from curricula.sampler import PromptSampler
from curricula.signal import UNSEEN, Signal
from curricula.window import PromptWindow
from rollouts.types import Prompt
from tests.curricula.streams import asked, rows, stream

SELECTIONS = ("signal", "pools", "dynamic_sampling", "uniform")
SOLVABLE = 10
"""Prompt i is solved with a rate of (i mod 10) / 9."""


def sampler(
    selection: str,
    size: int,
    capabilities: Sequence[str] = ("math",),
    end: int | None = None,
    directory: Path | None = None,
) -> PromptSampler:
    """Of a window on numbered prompts."""
    found = PromptWindow(stream(rows(capabilities, end)), size, checkpoint=directory)
    return PromptSampler(found, selection, 8, 0, Curriculum(steps=40))


def outcomes(prompt: Prompt, version: int) -> list[bool]:
    rng = np.random.default_rng((asked(prompt), version))
    return (rng.random(8) < asked(prompt) % SOLVABLE / (SOLVABLE - 1)).tolist()


def draw(one: PromptSampler, versions: range, capabilities: Sequence[str] = ("math",), each: int = 12) -> list[int]:
    """The numbers of the prompts drawn, `each` at a version, with three more in flight at most."""
    drawn, under_way = [], []
    for version in versions:
        for index in range(each):
            row = one.draw(capabilities[index % len(capabilities)], version)
            drawn.append(asked(one.prompts[row]))
            under_way.append((row, one.prompts[row]))
            if len(under_way) > 3:
                row, prompt = under_way.pop(0)
                assert one.prompts[row] is prompt  # what is in flight stays
                one.observe(row, outcomes(prompt, version), version)
        for row, prompt in under_way:
            one.observe(row, outcomes(prompt, version), version)
        under_way.clear()
    return drawn


@pytest.mark.parametrize("selection", ["uniform", "dynamic_sampling"])
def test_each_prompt_is_drawn_once_in_the_order_of_the_stream(selection: str) -> None:
    assert draw(sampler(selection, 16), range(20)) == list(range(240))
    both = draw(sampler(selection, 16, ("math", "code")), range(20), ("math", "code"))
    assert both == list(range(240))
    uneven = draw(sampler(selection, 32, ("math", "math", "code")), range(20), ("math", "code"))
    assert len(set(uneven)) == 240  # some of what the stream has more of is passed over
    for part in (uneven[::2], uneven[1::2]):
        assert part == sorted(part)


def test_a_group_without_a_verdict_was_drawn_too() -> None:
    one = sampler("uniform", 8)
    row = one.draw("math", 0)
    one.observe(row, None, 0)
    _ = one.stats  # settles
    assert asked(one.prompts[row]) == 8
    assert [asked(one.prompts[one.draw("math", 0)]) for _ in range(8)] == list(range(1, 9))


def test_a_prompt_drawn_twice_at_a_time_stays_until_both_draws_have_ended() -> None:
    one = sampler("uniform", 2)
    drawn = [one.draw("math", 0) for _ in range(3)]
    twice = next(row for row in drawn if drawn.count(row) == 2)
    one.observe(twice, None, 0)
    assert one.stats.attempts_P.sum() == 0
    assert asked(one.prompts[twice]) == twice
    one.observe(twice, None, 0)
    _ = one.stats
    assert asked(one.prompts[twice]) == 2


def test_uniform_goes_round_where_the_source_is_within_the_window() -> None:
    assert draw(sampler("uniform", 64, end=30), range(10)) == list(range(30)) * 4


def test_uniform_reads_a_longer_source_from_its_start_again() -> None:
    assert draw(sampler("uniform", 16, end=50), range(10)) == [*range(50), *range(50), *range(20)]


@pytest.mark.parametrize("selection", ["signal", "pools"])
def test_what_is_not_worth_drawing_leaves_first(selection: str) -> None:
    one = sampler(selection, 40)
    for row in range(36):  # rows 0 to 29: mixed, the others all or nothing
        solved = row % 7 + 1 if row < 30 else 8 * (row % 2)
        for _ in range(3 if row < 30 else 10):
            one.observe(row, [index < solved for index in range(8)], row % 3)
    assert one.stats.attempts_P.astype(bool).sum() == 36
    assert [asked(prompt) for prompt in one.prompts] == list(range(40))  # they were not drawn, as those of a scan
    drawn = [one.draw("math", 3) for _ in range(4)]
    for row in drawn:
        one.observe(row, [True, False] * 4, 3)
    stats = one.stats
    gone = {row for row in range(40) if asked(one.prompts[row]) != row}
    fresh = 40 // 8
    assert np.count_nonzero(stats.attempts_P == 0) == fresh
    assert gone <= set(range(30, 36))
    assert [asked(one.prompts[row]) for row in sorted(gone)] != sorted(gone)
    for row in gone:
        assert stats.attempts_P[row] == 0
        assert stats.prompt_ids[row].decode() == one.prompts[row].prompt_id
        if isinstance(one.selection, Signal):
            assert one.selection.bucket_P[row] == UNSEEN


@pytest.mark.parametrize("selection", ["signal", "pools"])
def test_without_retired_ones_those_seen_longest_ago_leave(selection: str) -> None:
    one = sampler(selection, 16)
    for row in range(16):
        one.observe(row, [True, False] * 4, 15 - row)
    drawn = [one.draw("math", 16) for _ in range(2)]
    for row in drawn:
        one.observe(row, [True, False] * 4, 16)
    _ = one.stats
    oldest = [each for each in (15, 14, 13, 12) if each not in drawn][:2]
    assert {each for each in range(16) if asked(one.prompts[each]) != each} == set(oldest)


def test_prompts_that_are_learnt_make_room() -> None:
    one = sampler("signal", 64)
    groups: Counter[str] = Counter()
    mixed = []
    for index in range(720):
        row = one.draw("math", index // 12)
        name = one.prompts[row].prompt_id
        groups[name] += 1
        mixed.append(groups[name] <= 3)  # solved ever after
        one.observe(row, [not mixed[-1], True] * 4, index // 12)
    assert len(groups) > 150
    assert sum(mixed[120:]) / 600 > 0.7
    assert isinstance(one.selection, Signal)
    assert np.count_nonzero(one.selection.bucket_P == UNSEEN) == 8


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("size", [40, 700])
def test_a_restored_sampler_draws_as_one_that_went_on(tmp_path: Path, selection: str, size: int) -> None:
    capabilities = ("math", "code")
    one = sampler(selection, size, capabilities)
    draw(one, range(60), capabilities)
    one.save(tmp_path)
    other = sampler(selection, size, capabilities, directory=tmp_path)
    assert other.load(tmp_path).new == 0
    expected = draw(one, range(60, 120), capabilities)
    assert draw(other, range(60, 120), capabilities) == expected
    assert other.prompts == one.prompts
    for name, column in one.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], column, err_msg=name)


def test_kinds_that_come_later_have_a_prior_and_are_remembered(tmp_path: Path) -> None:
    def levels() -> Iterator[Row]:
        for row in rows()():
            yield Row({**row.values, "difficulty": row.line // 100}, "numbers", row.line)

    one = PromptSampler(PromptWindow(stream(levels), 16), "uniform", 8, 0)
    draw(one, range(20))
    assert one.stats.kinds == ["math/0/numbers", "math/1/numbers", "math/2/numbers"]
    assert np.round(one.stats.priors.counts_KG.sum(axis=1)).tolist() != [0, 0, 0]
    one.save(tmp_path)
    other = PromptSampler(PromptWindow(stream(levels), 16, checkpoint=tmp_path), "uniform", 8, 0)
    assert other.stats.kinds == ["math/2/numbers"]
    other.load(tmp_path)
    assert other.stats.kinds == one.stats.kinds
    np.testing.assert_array_equal(other.stats.priors.alpha_K, one.stats.priors.alpha_K)
    assert other.stats.kind_P.tolist() == [2] * 16


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_million_rows_are_never_held(selection: str) -> None:
    read = []

    def source() -> Iterator[Row]:
        for row in rows(("math", "code"), end=10**6)():
            read.append(row.line)
            yield row

    gc.collect()
    before = sum(type(each) is Prompt for each in gc.get_objects())
    found = PromptWindow(stream(source), 512)
    one = PromptSampler(found, selection, 8, 0)
    most = 0
    for version in range(30):
        draw(one, range(version, version + 1), ("math", "code"), each=64)
        if version % 5 == 4:
            most = max(most, sum(type(each) is Prompt for each in gc.get_objects()) - before)
    assert 384 <= most <= 512
    assert len(one.prompts) == 384
    assert 512 <= len(read) <= 512 + 30 * 64  # no further than was drawn
    if selection == "uniform":
        assert len(read) >= 30 * 64


def test_a_run_may_go_on_with_a_window_and_without(tmp_path: Path) -> None:
    one = sampler("uniform", 16)
    draw(one, range(5))
    one.save(tmp_path)
    whole = PromptSampler(stream(rows()).first(80, 10), "uniform", 8, 0)
    assert whole.load(tmp_path).kept == 16
    draw(whole, range(5, 8))
    (tmp_path / "window.jsonl").unlink()
    whole.save(tmp_path)
    again = sampler("uniform", 16, directory=tmp_path)
    assert again.load(tmp_path).kept == 16
    assert again.stats.attempts_P.tolist() == whole.stats.attempts_P[:16].tolist()


def scan(count: int) -> dict[str, tuple[int, int]]:
    """Of the first prompts of the stream: 16 samples of each, solved as often as its rate says."""
    prompts = stream(rows(end=count)).first(count, 10)
    return {prompt.prompt_id: (16, round(16 * (asked(prompt) % SOLVABLE) / (SOLVABLE - 1))) for prompt in prompts}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_prompts_have_their_scan_when_they_take_a_row_and_only_once(selection: str, tmp_path: Path) -> None:
    one, known = sampler(selection, 24), scan(120)
    one.observe_scan(known)
    drawn = Counter(draw(one, range(3)))
    one.save(tmp_path)
    other = sampler(selection, 24, directory=tmp_path)
    other.scan = known
    other.load(tmp_path)
    later = draw(one, range(3, 5))
    assert draw(other, range(3, 5)) == later
    drawn.update(later)
    for each in (one, other):
        numbers = [asked(prompt) for prompt in each.prompts]
        assert sum(24 <= number < 120 for number in numbers) > 4
        assert each.stats.attempts_P.tolist() == [16 * (number < 120) + 8 * drawn[number] for number in numbers]


def test_what_is_hopeless_by_a_scan_leaves_at_once_and_of_the_rest_one_for_each_draw() -> None:
    one = sampler("signal", 40)
    one.observe_scan(scan(2000))
    drawn = draw(one, range(8))
    hopeless = {number for number in range(2000) if number % SOLVABLE in (0, SOLVABLE - 1)}
    held = {asked(prompt) for prompt in one.prompts}
    left = {number for number in range(max(held)) if number not in held}
    assert len(drawn) / 2 < len(left - hopeless) <= len(drawn)
    assert len(held & hopeless) <= 5  # an eighth, which are the next to leave
    assert sum(number in hopeless for number in drawn) < len(drawn) / 10


def test_a_scan_that_is_told_late_says_nothing_of_other_prompts() -> None:
    one = sampler("signal", 24)
    one.observe_scan(scan(24))
    kinds, moves = one.stats.priors.counts_KG.sum(), one.stats.moves.counts_KG.sum()
    one.scan = dict.fromkeys(scan(90), (16, 16))
    for row in [one.draw("math", 1) for _ in range(4)]:
        one.observe(row, None, 1)
    assert (one.stats.attempts_P == 16).all()
    assert max(asked(prompt) for prompt in one.prompts) > 24
    assert (one.stats.priors.counts_KG.sum(), one.stats.moves.counts_KG.sum()) == (kinds, moves)


def test_of_what_a_scan_tells_that_it_is_worth_drawing_the_oldest_leaves() -> None:
    one = sampler("signal", 16)
    one.observe_scan(dict.fromkeys(scan(500), (16, 8)))
    drawn = draw(one, range(1, 6), each=4)
    numbers = [asked(prompt) for prompt in one.prompts]
    assert max(numbers) == 16 + len(drawn) - 1
    assert {number for number in numbers if number < 16} <= set(drawn)
