"""Which demonstrations are kept and why, near-duplicates, and the report."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from judges import report
from judges.duplicates import near_duplicates
from judges.llm import Failure, Verdict
from judges.pruner import Candidate, decide


def verdict(score: float, label: str | None = None) -> Verdict:
    return Verdict(score, label or ("easy" if score < 0.25 else "medium" if score < 0.75 else "hard"), "", "j", {})


def kept(scores: Sequence[float], ratio: float, capabilities: Sequence[str] | None = None) -> list[int]:
    strata = capabilities or ["math"] * len(scores)
    decisions = decide([Candidate(name, 1, verdict(score)) for name, score in zip(strata, scores, strict=True)], ratio)
    return [index for index, decision in enumerate(decisions) if decision.kept]


def test_the_hardest_are_kept() -> None:
    assert kept([0.3, 0.9, 0.5, 0.8, 0.4, 0.7], 0.5) == [1, 3, 5]


def test_easy_rows_are_dropped_even_where_fewer_remain() -> None:
    assert kept([0.1, 0.0, 0.9, 0.2, 0.1, 0.6, 0.1, 0.1], 0.5) == [2, 5]


def test_each_capability_keeps_its_share() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.30, 0.29, 0.28, 0.27]
    capabilities = ["math"] * 4 + ["code"] * 4
    assert kept(scores, 0.5, capabilities) == [0, 1, 4, 5]


def test_a_capability_of_easy_rows_keeps_its_hardest() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.01, 0.02, 0.04, 0.03]
    assert kept(scores, 0.5, ["math"] * 4 + ["code"] * 4) == [0, 1, 6]


def test_a_capability_of_one_row_keeps_it() -> None:
    assert kept([0.9, 0.8, 0.1], 0.1, ["math", "math", "code"]) == [0, 2]


def test_among_equals_the_place_in_the_file_does_not_count() -> None:
    first = kept([0.5] * 400, 0.5)
    assert first == kept([0.5] * 400, 0.5)
    assert len(first) == 200
    assert 70 < sum(index < 200 for index in first) < 130  # 100 +- 5
    assert kept([0.5] * 6 + [0.6], 0.3)[-1] == 6


def test_a_threshold_decides_instead_of_a_share_and_leaves_no_capability_empty() -> None:
    scores = {"math": [0.9, 0.6, 0.5, 0.1], "chat": [0.2, 0.3]}
    candidates = [Candidate(name, 1, verdict(score)) for name, part in scores.items() for score in part]
    decisions = decide(candidates, 0.05, threshold=0.5)
    assert [decision.kept for decision in decisions] == [True, True, True, False, False, True]
    assert decisions[0].reason == "score of at least 0.5"
    assert decisions[3].reason == "score below 0.5"
    assert decisions[5].reason == "the hardest; none has a score of 0.5"


@pytest.mark.parametrize("method", ["random", "longest"])
def test_controls_keep_as_many_of_each_capability(method: str) -> None:
    candidates = [
        Candidate("math" if index % 3 else "code", index * 7 % 31, verdict(index / 60)) for index in range(60)
    ] + [Candidate("math", 99, None, "not judged: timed out")]
    judged, control = decide(candidates, 0.5), decide(candidates, 0.5, method=method, seed=3)
    for name in ("math", "code"):
        kept = [
            sum(decision.kept for decision, each in zip(arm, candidates, strict=True) if each.stratum == name)
            for arm in (judged, control)
        ]
        assert kept[0] == kept[1] > 0
    assert [each.kept for each in judged] != [each.kept for each in control]
    assert control[-1].reason == "not judged: timed out"
    assert control == decide(candidates, 0.5, method=method, seed=3)
    lengths = [each.length for each, decision in zip(candidates, control, strict=True) if decision.kept]
    others = [each.length for each, made in zip(candidates, control, strict=True) if not made.kept and each.verdict]
    if method == "longest":
        assert min(lengths) > sum(others) / len(others)
    else:
        assert decide(candidates, 0.5, method=method, seed=4) != control


def test_near_duplicates_share_most_of_their_words() -> None:
    story = (
        "Tom has a red box with many small things in it and he gives some of them to his sister every day of the week"
    )
    texts = [story, "What is 47+38?", story + " again", "What is 47+39?", story.replace("red", "blue"), story]
    assert near_duplicates(texts, 0.9) == {2: 0, 5: 0}
    assert near_duplicates(texts, 0.7) == {2: 0, 4: 0, 5: 0}

    assert near_duplicates(texts, 1.0) == {5: 0}
    assert near_duplicates([], 0.9) == {}


def test_text_without_spaces_is_told_by_its_letters() -> None:
    text = "小明有五个苹果和三个梨他给了小红两个苹果请问他现在一共有多少个水果请写出计算过程"
    assert near_duplicates([text, text[:-1], text[::-1]], 0.9) == {1: 0}


def test_the_report() -> None:
    scores = [0.95, 0.8, 0.6, 0.4, 0.1, 0.05]
    candidates = [Candidate("math", 1, verdict(score)) for score in scores]
    candidates.append(Candidate("math", 1, None, "not judged: timed out"))
    decisions = decide(candidates, 0.5)
    by_judge = {
        name: {6: Failure("timed out"), **{row: verdict(score + more) for row, score in enumerate(scores)}}
        for name, more in (("a", 0.0), ("b", 0.01))
    }
    found = report.numbers(candidates, decisions, by_judge, [0.1, 0.2, 0.9, 0.3, 0.8, 1.0, None])
    assert (found["rows"], found["kept"]) == (7, 3)
    assert found["not_judged"] == 1
    assert found["capabilities"]["math"]["scores"] == [1, 1, 0, 0, 1, 0, 1, 0, 1, 1]
    assert found["agreement_of_judges"] > 0.99
    assert found["agreement_with_pass_rates"] == pytest.approx(8 / 9)  # of 3 × 3 pairs one is the wrong way round
    assert found["reasons"]["dropped: not judged"] == 1
    conversations = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "x" * 999}] for n in range(7)
    ]
    text = report.page(found, candidates, decisions, conversations)
    assert "3 of 7 demonstrations kept" in text
    assert text.index("question 2") < text.index("The first that were dropped") < text.index("question 3")
    assert "question 6" not in text
    assert report.agreement([scores]) is None
    assert report.agreement([[0.5, 0.5], [0.5, 0.5]]) is None
    assert report.agreement([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]) < 0  # type: ignore[operator]
    assert report.auc([0.5, 0.6], [1.0, 1.0]) is None


def test_the_report_tells_failures_short_votes_and_what_vanished() -> None:
    candidates = [
        Candidate("math", 1, verdict(0.9)),
        Candidate("code", 1, None, "near-duplicate: of r0"),
        Candidate("code", 1, None, "not judged: timed out"),
    ]
    by_judge = {"a": {0: replace(verdict(0.9), missing=1), 2: verdict(0.5)}, "b": {0: verdict(0.9), 2: Failure("no")}}
    decisions = decide(candidates)
    found = report.numbers(candidates, decisions, by_judge, [None] * 3)
    assert (found["failed_by_judge"], found["short_by_judge"]) == ({"a": 0, "b": 1}, {"a": 1, "b": 0})
    assert found["agreement_of_judges"] is None  # both judged one row alone
    lines = report.warnings(found)
    assert lines == [
        "rows that b could not judge: 1",
        "verdicts of a by fewer answers than were asked for, since the others failed: 1; a rerun asks again",
        "nothing is left of code with its 2 rows: near-duplicate 1, not judged 1",
    ]
    text = report.page(found, candidates, decisions, [[{"role": "user", "content": "x"}]] * 3)
    assert all(f"\n- {line}\n" in text for line in lines)
