"""Which bucket a pass rate is in."""

import pytest

from curricula.buckets import BUCKETS, bucket_of


@pytest.mark.parametrize(
    ("rate", "bucket"),
    [
        (0.0, "unsolved"), (1 / 16, "hard"), (0.299, "hard"), (0.3, "medium"), (0.799, "medium"), (0.8, "easy"),
        (15 / 16, "easy"), (1.0, "solved"),
    ],
)  # fmt: skip
def test_the_ends_have_no_gradient_and_are_buckets_of_their_own(rate: float, bucket: str) -> None:
    assert bucket_of(rate) == bucket


def test_buckets_are_in_the_order_of_their_rates() -> None:
    assert list(dict.fromkeys(bucket_of(step / 20) for step in range(21))) == list(BUCKETS)
