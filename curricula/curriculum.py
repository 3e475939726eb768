"""The numbers that a selection of prompts goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """As `rl.curriculum` in the configuration, which says what each is and has the same defaults.

    Example: `Curriculum(band_start=(0.4, 0.8), band_end=(0.2, 0.4), steps=100).band(50)` is (0.3, 0.6)
    """

    band_start: Sequence[float] = (0.2, 0.95)
    band_end: Sequence[float] = (0.05, 0.95)
    novelty: float = 1.0
    explore_until: float = 0.2
    easy_floor: float = 0.05
    retest_share: float = 0.03
    retest_after: int = 10
    easy_pool: float = 0.1
    hard_pool: float = 0.1
    steps: int = 200

    def band(self, version: int) -> tuple[float, float]:
        """The pass rates aimed at, from the first to the last version of the run."""
        done = min(1.0, max(0.0, version / self.steps))
        low, high = (start + done * (end - start) for start, end in zip(self.band_start, self.band_end, strict=True))
        return low, high
