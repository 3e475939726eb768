"""What pruning did, in numbers and as a page to read: scores by capability, agreement, examples next to the cut."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from judges.llm import Failure, Verdict
from judges.pruner import Candidate, Decision
from rollouts.types import Message

BINS = 10
EXAMPLES = 10
CUT = 400
"""Characters of each turn that an example shows."""

ByJudge = Mapping[str, Mapping[int, Verdict | Failure]]
"""Judge → row → what it said of it; rows that it was not shown are left out."""


def numbers(
    candidates: Sequence[Candidate],
    decisions: Sequence[Decision],
    by_judge: ByJudge,
    pass_rates: Sequence[float | None],
) -> dict[str, Any]:
    """The report.

    Args:
        candidates: the demonstrations.
        decisions: on each.
        by_judge: what each judge said.
        pass_rates: the policy's own on each, None where unknown.
    """
    scores_by_judge = [
        [said.score if isinstance(said := judged.get(row), Verdict) else None for row in range(len(candidates))]
        for judged in by_judge.values()
    ]
    strata: dict[str, dict[str, Any]] = {}
    for name in sorted({candidate.stratum for candidate in candidates}):
        rows = [index for index, candidate in enumerate(candidates) if candidate.stratum == name]
        scores = [candidate.verdict.score for index in rows if (candidate := candidates[index]).verdict]
        histogram = Counter(min(BINS - 1, int(score * BINS)) for score in scores)
        strata[name] = {
            "rows": len(rows),
            "kept": sum(decisions[index].kept for index in rows),
            "mean_score": sum(scores) / len(scores) if scores else None,
            "scores": [histogram[place] for place in range(BINS)],
            "not_judged": dict(Counter(_cause(candidates[index]) for index in rows if candidates[index].problem)),
        }
    return {
        "rows": len(candidates),
        "kept": sum(decision.kept for decision in decisions),
        "not_judged": sum(candidate.verdict is None for candidate in candidates),
        "reasons": dict(Counter(_kind(decision) for decision in decisions).most_common()),
        "capabilities": strata,
        "failed_by_judge": failures(by_judge),
        "short_by_judge": {
            name: sum(isinstance(said, Verdict) and said.missing > 0 for said in judged.values())
            for name, judged in by_judge.items()
        },
        "agreement_of_judges": agreement(scores_by_judge),
        "agreement_with_pass_rates": auc(
            [candidate.verdict.score if candidate.verdict else None for candidate in candidates], pass_rates
        ),
    }


def failures(by_judge: ByJudge) -> dict[str, int]:
    """Judge → how many rows it gave no verdict on, of those that it was shown."""
    return {name: sum(isinstance(said, Failure) for said in judged.values()) for name, judged in by_judge.items()}


def warnings(found: dict[str, Any]) -> list[str]:
    """What a reader of the report's numbers should not miss, a line each."""
    lines = [f"rows that {name} could not judge: {count}" for name, count in found["failed_by_judge"].items() if count]
    lines += [
        f"verdicts of {name} by fewer answers than were asked for, since the others failed: {count}; a rerun asks again"
        for name, count in found["short_by_judge"].items()
        if count
    ]
    for name, values in found["capabilities"].items():
        if not values["kept"]:
            causes = ", ".join(f"{cause} {count}" for cause, count in values["not_judged"].items())
            lines.append(f"nothing is left of {name} with its {values['rows']} rows: {causes}")
    return lines


def _cause(candidate: Candidate) -> str:
    """Why there is no verdict, without the particulars."""
    return candidate.problem.partition(":")[0]


def _kind(decision: Decision) -> str:
    """A reason without its particulars."""
    return ("kept: " if decision.kept else "dropped: ") + decision.reason.partition(":")[0]


def agreement(scores: Sequence[Sequence[float | None]]) -> float | None:
    """Krippendorff's alpha of several judges' scores as intervals: 1 for the same, 0 for what chance gives.

    None for fewer than two judges, or where nothing varies of what two of them judged.
    """
    if len(scores) < 2:
        return None
    import krippendorff

    data = np.array([[np.nan if score is None else score for score in row] for row in scores])
    compared = data[:, (~np.isnan(data)).sum(axis=0) > 1]
    if compared.size == 0 or np.nanstd(compared) == 0:
        return None
    return float(krippendorff.alpha(compared, level_of_measurement="interval"))


def auc(scores: Sequence[float | None], pass_rates: Sequence[float | None]) -> float | None:
    """How often, of two questions, the judge finds that one harder which the policy solves less than half the time.

    0.5 is chance; ties count half. None where there are not both kinds.
    """
    pairs = [
        (score, rate) for score, rate in zip(scores, pass_rates, strict=True) if score is not None and rate is not None
    ]
    hard, easy = [score for score, rate in pairs if rate < 0.5], [score for score, rate in pairs if rate >= 0.5]
    if not hard or not easy:
        return None
    ranked = np.sort(easy)
    below, not_above = np.searchsorted(ranked, hard, "left"), np.searchsorted(ranked, hard, "right")
    return float((below + not_above).mean() / 2 / len(easy))


def page(
    found: dict[str, Any],
    candidates: Sequence[Candidate],
    decisions: Sequence[Decision],
    conversations: Sequence[Sequence[Message]],
) -> str:
    """The report as Markdown."""
    lines = [f"# Pruning: {found['kept']} of {found['rows']} demonstrations kept", ""]
    lines += [
        "| capability | rows | kept | mean score | scores from 0 (easy) to 1 (hard), in tenths |",
        "|---|---|---|---|---|",
    ]
    for name, values in found["capabilities"].items():
        mean = "" if values["mean_score"] is None else f"{values['mean_score']:.2f}"
        bins = " ".join(map(str, values["scores"]))
        lines.append(f"| {name} | {values['rows']} | {values['kept']} | {mean} | {bins} |")
    if warned := warnings(found):
        lines += ["", *(f"- {warning}" for warning in warned)]
    lines += [
        "",
        "| reason | rows |",
        "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in found["reasons"].items()),
    ]
    for key, text in {
        "agreement_of_judges": "Agreement of the judges (Krippendorff's alpha): {:.2f}.",
        "agreement_with_pass_rates": (
            "Of a question that the policy solves less than half the time and another, the judge finds the first one "
            "harder with a probability of {:.2f} (0.5 is chance)."
        ),
    }.items():
        if found[key] is not None:
            lines += ["", text.format(found[key])]
    for title, kept in (("The last that were kept", True), ("The first that were dropped", False)):
        lines += ["", f"## {title}, by score"]
        for index in _nearest(candidates, decisions, kept):
            verdict = candidates[index].verdict
            assert verdict is not None
            said = [f"    {message['role']}: {_cut(message['content'])}" for message in conversations[index]]
            lines += [
                "",
                f"{candidates[index].stratum}, score {verdict.score:.3f} ({decisions[index].reason})",
                "",
                *said,
            ]
    return "\n".join(lines) + "\n"


def _nearest(candidates: Sequence[Candidate], decisions: Sequence[Decision], kept: bool) -> list[int]:
    """Up to ten examples next to the cut, the capabilities in turns."""
    strata: dict[str, list[int]] = defaultdict(list)
    for index, (candidate, decision) in enumerate(zip(candidates, decisions, strict=True)):
        if candidate.verdict is not None and decision.kept == kept:
            strata[candidate.stratum].append(index)
    for rows in strata.values():
        rows.sort(key=lambda index: candidates[index].verdict.score * (1 if kept else -1))  # type: ignore[union-attr]
    turns = [rows[place] for place in range(EXAMPLES) for rows in strata.values() if place < len(rows)]
    return turns[:EXAMPLES]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CUT else f"{text[:CUT]}…"
