"""What a snapshot says of a sampler."""

import numpy as np

from curricula.sampler import PromptSampler
from curricula.snapshot import BINS, CurriculumSnapshot, Snapshots
from rollouts.types import Prompt


def sampler_of(count: int) -> PromptSampler:
    return PromptSampler([Prompt(f"p{row}", (), "math") for row in range(count)], "uniform", group_size=4, seed=0)


def take(snapshots: Snapshots, version: int) -> CurriculumSnapshot:
    return snapshots.take(version, {"math": 2}, {"math": 1}, drawn=3, mixed=2, solve_rate=0.25)


def test_buckets_what_moved_and_the_histogram() -> None:
    sampler = sampler_of(6)
    for row, solved in enumerate([0, 1, 2, 4]):
        sampler.observe(row, [index < solved for index in range(4)], 1)
    snapshots = Snapshots(sampler)
    first = take(snapshots, 1)
    assert first.buckets == {"unseen": 2, "unsolved": 1, "hard": 1, "medium": 1, "easy": 0, "solved": 1}
    assert first.moved == {}  # what was known when the first one was asked for has not moved
    assert (sum(first.histogram), len(first.histogram)) == (4, BINS)
    for row, solved in [(0, 1), (3, 4), (4, 0), (5, 0)]:
        sampler.observe(row, [index < solved for index in range(4)], 2)
    second = take(snapshots, 2)
    assert second.moved == {"unseen>unsolved": 2, "unsolved>hard": 1}
    assert second.buckets == {"unseen": 0, "unsolved": 2, "hard": 2, "medium": 1, "easy": 0, "solved": 1}
    assert take(snapshots, 2).moved == {}
    assert (second.version, second.asked, second.trained, second.drawn, second.mixed, second.solve_rate) == (
        2, {"math": 2}, {"math": 1}, 3, 2, 0.25,
    )  # fmt: skip


def test_the_histogram_is_of_the_posterior_means_at_that_version() -> None:
    sampler = sampler_of(50)
    rng = np.random.default_rng(0)
    for row in range(40):
        sampler.observe(row, (rng.random(16) < row / 40).tolist(), 0)
    snapshots = Snapshots(sampler)
    found = []
    for version in (0, 3000):
        means = [sampler.stats.view(row, version).pass_rate for row in range(40)]
        expected = [sum(low / 10 <= mean < (low + 1) / 10 for mean in means) for low in range(10)]
        found.append(take(snapshots, version).histogram)
        assert found[-1] == expected
    assert found[0] != found[1]  # faded


def test_nothing_seen() -> None:
    snapshot = take(Snapshots(sampler_of(3)), 0)
    assert snapshot.histogram == [0] * BINS
    assert snapshot.buckets["unseen"] == 3
