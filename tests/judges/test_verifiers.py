import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from judges.code_tests import same
from judges.verifiers import VERIFIERS, as_number
from rollouts.errors import DataError
from rollouts.types import Prompt, Score

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "train.jsonl"
GSM8K_SAMPLE = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "She earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    "The total is 1,000 + 80 = 1080.\n#### 1,080",
]
DOUBLED = ({"input": [1, 2], "output": [2, 4]}, {"input": [], "output": []})


def prompt(**fields: Any) -> Prompt:
    return Prompt("p1", ({"role": "user", "content": "?"},), **fields)


def solved(name: str, answer: str | None, completion: str, **fields: Any) -> bool:
    score = VERIFIERS[name](prompt(answer=answer, **fields), completion)
    assert score.reward == float(score.outcome)
    return score.outcome


def test_exact_ignores_white_space_and_case_only() -> None:
    assert solved("exact", "A B C D", " a  b c D\n")
    assert not solved("exact", "A B C D", "A B D C")
    assert not solved("exact", "A B C D", "ABCD")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("85", "85"),
        ("85", "85.0"),
        ("1,234", "1234"),
        ("1234.5", "1,234.50"),
        ("-7", "−7"),
        ("72", "72 clips"),
        ("72", "$72"),
        ("72", "x = 72."),
        ("72", r"\boxed{72}"),
        ("72", r"$72 \text{ clips}$"),
        ("72", "a 72-hour day"),
        ("1234", r"1{,}234"),
        ("1/2", "0.5"),
        ("0.5", r"\frac{1}{2}"),
        (r"\frac{1}{2}", "1/2"),
        ("x+1", "1+x"),
        (r"2\sqrt{3}", r"$\sqrt{12}$"),
        ("x^2", "x*x"),
    ],
)
def test_math_accepts_what_is_equal(reference: str, answer: str) -> None:
    assert solved("math", reference, f"<ans>{answer}</ans>", answer_format=("<ans>", "</ans>"))


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("85", "86"),
        ("85", "84 85"),
        ("85", "85 or 86"),
        ("85", "84, 85"),
        ("85", "47+38"),
        ("85", "170/2"),
        ("85", "84=85"),
        ("85", "- 85"),
        ("1", "x+1"),
        ("-1", "x-1"),
        ("85", "eighty-five"),
        ("85", "2^2^2^2^2^2"),
        ("0.5", "0.25+0.25"),
        ("x+1", "x-1"),
        ("1/3", "0.333"),
        ("x", r"$9^{9^{9^{9}}}$"),
        ("x", "(" * 1500),
        ("x", "y" * 5000),
    ],
)
def test_math_refuses_what_is_not_or_hedges_or_gives_the_question_back(reference: str, answer: str) -> None:
    assert not solved("math", reference, f"<ans>{answer}</ans>", answer_format=("<ans>", "</ans>"))


def test_as_number() -> None:
    assert as_number("1,234.50") == Decimal("1234.5")
    assert as_number("about 12,500 people") == 12500
    assert as_number("-3") == -3
    assert as_number("3*4") is None
    assert as_number("A B C D") is None
    assert as_number("1e5") is None


def test_code_runs_the_tests() -> None:
    fields: dict[str, Any] = {"tests": DOUBLED, "answer_format": ("{{", "}}")}
    assert solved("code", None, "{{[v*2 for v in x]}}", **fields)
    assert solved("code", None, "{{x=[v+v for v in x]; return x}}", **fields)
    wrong = VERIFIERS["code"](prompt(**fields), "{{[2, 4]}}")
    assert wrong == Score(0.0, False, "test 2 of 2: wrong output", {"format": 1.0, "correct": 0.0})
    failed = VERIFIERS["code"](prompt(**fields), "{{x[0]}}")
    assert failed.reason == "test 1 of 2: wrong output"
    assert VERIFIERS["code"](prompt(**fields), "{{[2, 4][:len(x)*x[1]]}}").reason == (
        "test 2 of 2: IndexError: list index out of range"
    )


def test_a_right_answer_in_another_format_is_not_solved_but_found() -> None:
    asked = ("<ans>", "</ans>")
    score = VERIFIERS["auto"](prompt(answer="85", answer_format=asked), "<ans>85</ans>\n3+4")
    assert score == Score(0.0, False, "text after '</ans>'", {"format": 0.0, "correct": 1.0})
    score = VERIFIERS["auto"](prompt(answer="85", answer_format=asked), "Answer: 85")
    assert score == Score(0.0, False, "no '<ans>'", {"format": 0.0, "correct": 0.0})
    score = VERIFIERS["code"](prompt(tests=DOUBLED, answer_format=asked), "<ans>[v*2 for v in x]")
    assert score.breakdown == {"format": 0.0, "correct": 1.0}
    score = VERIFIERS["auto"](prompt(answer="85", answer_format=asked), "<ans> </ans>")
    assert score == Score(0.0, False, "the answer is empty", {"format": 0.0, "correct": 0.0})


def test_auto_chooses_by_what_the_prompt_has() -> None:
    assert solved("auto", None, "Answer: [v*2 for v in x]", tests=DOUBLED, answer_format=("Answer:", ""))
    assert solved("auto", "1,085", "Result: 1085.0", answer_format=("Result:", ""))
    assert solved("auto", "B A C D", "A B C D\n=> B A C D", answer_format=("=>", ""))
    assert not solved("auto", "F", "=> f > g", answer_format=("=>", ""))


def test_what_the_data_lacks_is_an_error_that_names_the_row() -> None:
    with pytest.raises(DataError, match=r"prompt p1: tests\[1\] has no 'output'"):
        VERIFIERS["code"](prompt(tests=(DOUBLED[0], {"input": 1})), "x")
    with pytest.raises(DataError, match="prompt p1: no 'tests'"):
        VERIFIERS["code"](prompt(answer="1"), "x")
    with pytest.raises(DataError, match="prompt p1 has no 'answer'"):
        VERIFIERS["math"](prompt(), "1")


def test_same_compares_plain_data() -> None:
    assert same([1, 2.0, {"a": None}], (1, 2, {"a": None}))
    assert same(0.1 + 0.2, 0.3)
    assert same({"1": "a"}, {1: "a"})
    assert not same(True, 1)
    assert not same(1, True)
    assert not same([1], [1, 2])
    assert not same("1", 1)
    assert not same(10**400, 1e300)
    assert not same(float("nan"), 1.0)


def test_gsm8k_answers_verify_against_themselves_and_not_against_another() -> None:
    worked = GSM8K_SAMPLE
    if GSM8K.exists():
        with GSM8K.open() as lines:
            worked = [json.loads(line)["answer"] for line, _ in zip(lines, range(200), strict=False)]
        assert len(worked) == 200
    for text in worked:
        reference = re.split(r"####\s*", text)[1].strip()
        off = str(int(reference.replace(",", "")) + 1)
        for name in ("math", "auto"):
            for answer in (reference, text):  # the final number alone, or the whole worked text as the reference
                assert solved(name, answer, text)
                assert solved(name, answer, f"So there are {reference} of them.\nAnswer: {reference}")
                assert not solved(name, answer, text.replace(f"#### {reference}", f"#### {off}"))
