"""The pruner: which demonstrations are kept, by their verdicts, and why.

| method | keeps |
|---|---|
| `judge` | the hardest, by the judge's score |
| `random` | as many of each capability as `judge` would, drawn at random |
| `longest` | as many of each capability as `judge` would, with the longest answers |

The last two are control arms: what pruning is worth is what `judge` is better than they are.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from judges.llm import Verdict

METHODS = ("judge", "random", "longest")


@dataclass(frozen=True)
class Candidate:
    """A demonstration, as the pruner sees it.

    Example: `Candidate("math", 120, Verdict(…))`

    `stratum` is its capability (and modality); `length` that of its answer, in characters. Without a verdict `problem`
    says why: the judge failed, or the row was not shown to it.
    """

    stratum: str
    length: int
    verdict: Verdict | None
    problem: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether a demonstration is kept, and why. Example: `Decision(False, "labelled easy")`."""

    kept: bool
    reason: str


def decide(
    candidates: Sequence[Candidate],
    keep_ratio: float = 0.5,
    threshold: float | None = None,
    method: str = "judge",
    seed: int = 0,
) -> list[Decision]:
    """A decision on each candidate, in order.

    Stratified, so that no capability vanishes because its tasks are easier than another's: one whose rows are all easy
    keeps its hardest half of `keep_ratio`.

    Args:
        candidates: the demonstrations.
        keep_ratio: at most this share of each stratum is kept, rounded down (at least one row).
        threshold: keep those with at least this score instead, and the hardest where a stratum has none.
        method: one of `METHODS`.
        seed: of `random`.
    """
    decisions = [Decision(False, candidate.problem) for candidate in candidates]
    strata: dict[str, list[int]] = defaultdict(list)
    for index, candidate in enumerate(candidates):
        strata[candidate.stratum].append(index)
    rng = random.Random(seed)
    for name in sorted(strata):
        rows = strata[name]
        judged = [index for index in rows if candidates[index].verdict is not None]
        if not judged:
            continue
        room = max(1, int(len(rows) * keep_ratio))
        # Of equal scores, which the votes of one answer are, those that come first in the file have no preference.
        chosen = _hardest(candidates, random.Random(seed).sample(judged, len(judged)), room, threshold)
        if method == "random":
            chosen = dict.fromkeys(rng.sample(judged, len(chosen)), f"drawn at random, {len(chosen)} of {name}")
        elif method == "longest":
            longest = sorted(judged, key=lambda index: (-candidates[index].length, index))[: len(chosen)]
            chosen = dict.fromkeys(longest, f"one of the {len(chosen)} longest of {name}")
        for index in judged:
            dropped = "not drawn" if method == "random" else "shorter" if method == "longest" else ""
            kept = index in chosen
            decisions[index] = Decision(
                kept, chosen[index] if kept else dropped or _why_not(candidates[index], threshold)
            )
    return decisions


def _hardest(
    candidates: Sequence[Candidate], judged: Sequence[int], room: int, threshold: float | None
) -> dict[int, str]:
    """The rows of a stratum that the judge keeps, with the reason."""
    scores = {index: _score(candidates[index]) for index in judged}
    order = sorted(judged, key=lambda index: -scores[index])
    if threshold is not None:
        above = [index for index in order if scores[index] >= threshold]
        if above:
            return dict.fromkeys(above, f"score of at least {threshold:g}")
        return {order[0]: f"the hardest; none has a score of {threshold:g}"}
    hardest = order[:room]
    chosen = [index for index in hardest if _label(candidates[index]) != "easy"]
    least = max(1, room // 2)
    if len(chosen) >= least:
        return dict.fromkeys(chosen, f"one of the hardest {room}, and not easy")
    return dict.fromkeys(hardest[:least], f"one of the hardest {least}, though nearly all are easy")


def _why_not(candidate: Candidate, threshold: float | None) -> str:
    if threshold is not None:
        return f"score below {threshold:g}"
    return "labelled easy" if _label(candidate) == "easy" else "others are harder"


def _score(candidate: Candidate) -> float:
    assert candidate.verdict is not None
    return candidate.verdict.score


def _label(candidate: Candidate) -> str:
    assert candidate.verdict is not None
    return candidate.verdict.label
