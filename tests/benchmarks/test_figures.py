"""What the benchmarks of whole stages make of their measurements."""

import pytest

from judges.corner_cases import KINDS
from tests.benchmarks.harness import Measurement
from tests.benchmarks.judged import over_seeds
from tests.benchmarks.pruning import gain
from tests.benchmarks.repair import holds


def test_a_gain_is_in_pairs_of_seeds() -> None:
    found = gain([0.5, 0.6], [0.4, 0.4])
    assert found["mean"] == pytest.approx(0.15)
    assert found["ci95"] == pytest.approx((0.15 - 12.706 * 0.05, 0.15 + 12.706 * 0.05))
    assert gain([0.5], [0.4])["ci95"] is None


def test_a_change_is_over_prompts_each_by_its_mean_over_the_seeds() -> None:
    found = over_seeds([{"a": 0.2, "b": 0.0}, {"a": 0.4, "b": 0.2}])
    assert found["mean"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx((0.2 - 1.96 * 0.1, 0.2 + 1.96 * 0.1))
    assert found["by_seed"] == pytest.approx([0.1, 0.3])
    assert over_seeds([{"a": 0.2}, {"a": 0.4, "b": 0.2}])["mean"] == pytest.approx(0.25)  # b was not judged once


def repaired(before: int, after: int, upper: float) -> Measurement:
    """A seed in which one kind went from so many cases to so many."""
    kind = KINDS[0]
    counts = [dict.fromkeys(KINDS, 0) | {kind: count} for count in (before, after)]
    return {"cases": counts, "change": {kind: {"ci95": [-1.0, upper]}}}


@pytest.mark.parametrize(
    ("before", "after", "upper", "expected"),
    [
        (300, 20, -0.01, True),
        (300, 290, 0.01, False),
        (20, 300, 0.05, False),  # DPO made it common
        (99, 20, -0.01, False),  # nothing was there to repair
    ],
)
def test_a_kind_with_enough_cases_has_to_become_rarer(before: int, after: int, upper: float, expected: bool) -> None:
    assert holds(repaired(before, after, upper)) == expected
