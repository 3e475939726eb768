"""The pruner: which demonstrations are kept, by their verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from judges.llm import Verdict


def keep(verdicts: Sequence[Verdict], capabilities: Sequence[str], keep_ratio: float) -> list[bool]:
    """The hardest `keep_ratio` of each capability's rows; rows labelled easy are dropped even where fewer remain.

    Stratified, so that no capability vanishes because its tasks are easier than another's: one whose rows are all
    easy keeps its hardest half of `keep_ratio`.

    Args:
        verdicts: of the rows.
        capabilities: of the rows.
        keep_ratio: at most this share of each capability is kept, rounded down (at least one row).
    """
    kept = [False] * len(verdicts)
    strata: dict[str, list[int]] = defaultdict(list)
    for index, capability in enumerate(capabilities):
        strata[capability].append(index)
    for rows in strata.values():
        room = max(1, int(len(rows) * keep_ratio))
        hardest = sorted(rows, key=lambda index: (-verdicts[index].score, index))[:room]
        chosen = [index for index in hardest if verdicts[index].label != "easy"]
        least = max(1, room // 2)
        for index in chosen if len(chosen) >= least else hardest[:least]:
            kept[index] = True
    return kept
