"""The gate between judging and training: which groups can teach."""

from __future__ import annotations

from collections.abc import Sequence


def rejection(outcomes: Sequence[bool]) -> str | None:
    """Why a group is not trained on, or None.

    A group whose rollouts all have the same *outcome* has no group-relative advantage. Shaped rewards are not asked:
    a length bonus would make every group of wrong answers look like a lesson.
    """
    if all(outcomes):
        return "all_solved"
    if not any(outcomes):
        return "none_solved"
    return None
