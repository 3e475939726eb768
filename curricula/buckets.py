"""Buckets of pass rates: what a prompt can teach the policy."""

from __future__ import annotations

from typing import Any

import numpy as np

BUCKETS = ("unsolved", "hard", "medium", "easy", "solved")
"""From what the policy never solves to what it always solves; neither end has a gradient."""
HARD_BELOW = 0.3
"""A pass rate from above 0 to below this is hard."""
EASY_FROM = 0.8
"""A pass rate from this to below 1 is easy; what lies between hard and easy is medium."""


def bucket_of(pass_rate: float) -> str:
    """The bucket of a pass rate from 0 to 1.

    Example: `bucket_of(0.25) == "hard"`, `bucket_of(1.0) == "solved"`
    """
    return BUCKETS[int(bucket_index(np.array(pass_rate)))]


def bucket_index(pass_rates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Places in `BUCKETS`, of the shape of the pass rates."""
    above_0 = np.nextafter(0, 1)
    return np.digitize(pass_rates, [above_0, HARD_BELOW, EASY_FROM, 1.0])
