"""Whole shares of a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.quotas import allocate


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (8, {"math": 1, "code": 1, "chat": 1}, {"math": 3, "code": 3, "chat": 2}),
        (8, {"math": 1.0}, {"math": 8}),
        (10, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 5, "b": 3, "c": 2}),
        (7, {"a": 3, "b": 2, "c": 1}, {"a": 4, "b": 2, "c": 1}),  # 3.5, 2.33, 1.17
        (4, {"a": 100, "b": 1, "c": 1}, {"a": 2, "b": 1, "c": 1}),
        (3, {"a": 1000, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
        (2, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}),
        (6, {"a": 0.1, "b": 0.1}, {"a": 3, "b": 3}),
    ],
)
def test_values(total: int, weights: dict[str, float], shares: dict[str, int]) -> None:
    assert allocate(total, weights) == shares


@given(
    st.integers(1, 300),
    st.lists(st.floats(0.01, 100), min_size=1, max_size=8),
    st.floats(0.1, 10),
)
def test_shares_sum_up_and_follow_the_weights(total: int, weights: list[float], scale: float) -> None:
    named = {f"c{index}": weight for index, weight in enumerate(weights)}
    shares = allocate(total, named)
    assert list(shares) == list(named)
    assert sum(shares.values()) == total
    if total >= len(named):
        assert min(shares.values()) >= 1
    exact = {name: total * weight / sum(weights) for name, weight in named.items()}
    if min(exact.values()) >= 1:  # nothing was raised to 1: the largest-remainder rule alone
        assert all(abs(shares[name] - exact[name]) < 1 + 1e-9 for name in named)
