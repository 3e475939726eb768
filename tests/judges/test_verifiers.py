import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from judges.code_tests import same, same_text
from judges.math_worker import MathWorker
from judges.verifiers import VERIFIERS, as_number, limit_programs
from posttrain.config import SandboxConfig
from rollouts.errors import DataError, JudgeError
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


def test_a_choice_is_told_by_its_letter() -> None:
    assert solved("choice", "B", "The answer is (B).")
    assert solved("choice", "(B) Paris", "b")
    assert not solved("choice", "B", "It is A.\nThe answer is C, not B.")
    assert not solved("choice", "B", "B or C")
    with pytest.raises(JudgeError, match="answer 'Paris' names no choice"):
        solved("choice", "Paris", "B")


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


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (
            "5",
            [
                "5",
                "5.0",
                "x = 5",
                "5 m",
                "5m",
                r"5\text{ cm}^2",
                "5 cm^2",
                "5 km/h",
                r"\$5",
                "$5$",
                r"5\%",
                "5 (five)",
                r"\mathbf{5}",
                "**5**",
                "f(3) = 5",
                r"\theta = 5",
                "+5",
                r"x \approx 5",
                r"5 \text{ apples}",
                "5 apple(s)",
            ],
            [
                "3x",
                "5x",
                "x>5",
                "x<5",
                r"x \ge 5",
                "sqrt(25)",
                r"\sqrt{25}",
                "√25",
                "|-5|",
                "5²",
                "f(5)",
                "5!",
                "10/2",
                r"\frac{10}{2}",
                r"\frac{5}{1}",
                "(10)/(2)",
                "10-(5)",
                "0--5",
                "(5)(1)",
                "5(1)",
                "5^1",
                r"\binom{5}{1}",
                r"\lfloor 5.5 \rfloor",
                "log 5",
                "minus 5",
                "-5",
                "5 or 6",
                "5, 6",
                r"\pm 5",
                "5 + 0",
                r"5\pi",
                "5i",
                "(5, 6)",
                "[5, 6]",
                "10^5",
                "5e1",
                "0.5",
                r"\log_2 32",
                "2+3",
                "2x = 10",
            ],
        ),
        (
            "45",
            ["45"],
            [
                "50-(5)",
                "40--5",
                "(5)(9)",
                "(90)/(2)",
                r"\frac{90}{2}",
                r"\sqrt{2025}",
                "3^2*5",
                r"\dfrac{90}{2}",
                r"9 \cdot 5",
                "45²",
            ],
        ),
        ("9", ["9"], ["3^2", "3**2", "3²", "-(-9)", "10 - 1"]),
        ("-85", ["-85", "- 85", "−85", "–85", "x = -85", "$-85$"], ["85", r"-\frac{170}{2}", "-(85)"]),
        (
            "1000000",
            ["1,000,000", "1e6", "1{,}000{,}000", r"1\,000\,000", r"1 \times 10^6", r"1.0\times10^{6}", "1 x 10^6"],
            ["10^6", "1000^2", "1e5", r"10 \times 10^5", "1 000 001"],
        ),
        ("1234.5", ["1,234.50", r"1.2345 \times 10^3"], ["1234", "1.234,5"]),
        ("235", ["235"], ["1 234"]),
        (
            "0.5",
            ["1/2", r"\frac{1}{2}", r"\frac12", "½", "0.50", r"50\%", r"x = \frac{1}{2}", "2/4", ".5"],
            ["0.25+0.25", r"\frac{1}{4}+\frac{1}{4}", "1-(1/2)", "(0.5)(1)", "1/3", r"\frac{1}{2}\cdot 1", r"0.5\%"],
        ),
        (
            r"\frac{1}{2}",
            ["0.5", "1/2", r"\dfrac{1}{2}", r"\tfrac12", r"\frac{2}{4}", r"P = \frac12", r"50\%"],
            [r"\frac{1}{4}+\frac{1}{4}", r"\frac14\frac21", "1-1/2", "2", r"-\frac12", "1/3"],
        ),
        ("3.5", ["3 1/2", "3½", r"3\frac{1}{2}", "7/2", r"\frac72"], ["3", "2", "3/2"]),
        ("3 1/2", ["3.5", "7/2"], ["2", "3"]),
        (r"-\frac{7}{2}", ["-3.5", r"-3\frac{1}{2}", "-3 1/2", r"\frac{-7}{2}"], ["3.5", "-7"]),
        ("1/3", [r"\frac13", r"0.\overline{3}"], ["0.333", "0.3", "3"]),
        (r"0.\overline{3}", ["1/3"], ["0", "0.3", "3"]),
        (r"2.1\overline{6}", [r"\frac{13}{6}"], ["2.1", "2"]),
        ("12%", [r"12\%", "0.12", "12 percent"], ["1.2", "13%"]),
        ("x>5", ["x > 5", "5<x", r"(5,\infty)", "x>5.0"], ["x<5", "x=5", "5", r"x \ge 5", "x>6"]),
        (r"x \ge 5", ["x≥5", r"5 \le x", r"[5,\infty)", "[5,∞)"], ["x>5", "x≤5", "5"]),
        ("1 < x < 2", ["(1,2)"], [r"1 \le x \le 2", "[1,2]", "1"]),
        ("3x", ["3 x", "x*3", r"3 \cdot x", "3·x"], ["3", "3y", "4x", "x"]),
        ("3t", ["3 t", "t*3", r"3\cdot t"], ["3", "3s", "t"]),
        ("2c+3d", ["3d+2c"], ["2c+3", "2d+3c"]),
        ("x^2", ["x²", "x*x", "x**2"], ["x", "2x", "x^3"]),
        ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2"], ["x^2+1", "(x-1)^2", "1"]),
        ("(x-1)(x+2)", ["x^2+x-2", "(x+2)(x-1)"], ["(x+1)(x-2)", "-2"]),
        (r"2\sqrt{3}", [r"\sqrt{12}", "2√3", "2*sqrt(3)", "√12"], [r"\sqrt{3}", "2", "6", "3√2"]),
        (r"3\pi", ["3π", r"\pi*3", r"\frac{6\pi}{2}"], ["3", r"\pi", "9.42"]),
        (r"\frac{\pi}{2}", [r"0.5\pi", "π/2"], ["2", "1.57", r"\frac{\pi}{4}"]),
        (r"90^\circ", ["90", "90°", "90 degrees", r"90^{\circ}"], ["80", r"9^\circ", r"\frac{\pi}{4}"]),
        ("2+3i", ["3i+2", "2 + 3i"], ["2-3i", "5", "3+2i"]),
        ("(1,2)", ["(1, 2)", r"\left(1,2\right)", "(1.0,2)"], ["(2,1)", "[1,2]", "1", "12"]),
        ("[0, 1)", ["[0,1)", r"\left[0,1\right)"], ["(0,1)", "[0,1]", "[0,2)"]),
        (
            r"(-\infty,1)\cup(2,\infty)",
            ["(-∞,1)∪(2,∞)", r"(2,\infty)\cup(-\infty,1)"],
            [r"(-\infty,1)", r"(-\infty,1]\cup(2,\infty)"],
        ),
        (r"\{1,2,3\}", [r"\{3,2,1\}", "{1, 2, 3}"], [r"\{1,2\}", r"\{1,2,4\}", "123"]),
        ("1,2", ["2, 1", "1 and 2", "x=1,x=2", "x = 1 or x = 2"], ["1", "1,3"]),
        (r"2 \pm \sqrt{3}", [r"2+\sqrt{3}, 2-\sqrt{3}", r"2-\sqrt3, 2+\sqrt3"], [r"2+\sqrt{3}", r"3 \pm \sqrt{2}"]),
        (
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            [r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"],
            [r"\begin{pmatrix}1&2\\4&3\end{pmatrix}", "1234"],
        ),
        ("y=2x+1", ["y = 1+2x", "2x+1", "y-2x=1"], ["y=2x-1", "x=2y+1"]),
        ("y = 5", ["y=5", "5"], ["x = 5", "y = 6", "y > 5"]),
        ("x^2+y^2=4", ["y^2+x^2=4", "x^2 + y^2 - 4 = 0"], ["x^2+y^2=2", "4"]),
        (r"1.5\times10^{-3}", ["0.0015", "1.5e-3", "1.5 × 10^-3", r"1.5 \cdot 10^{-3}"], ["0.015", "1.5"]),
        ("101_2", ["101_2", "101_{2}", "101"], ["101_3", "111_2", "5"]),
        (r"\text{(B)}", ["B", "(B)", r"\textbf{(B)}"], ["A", "(C)"]),
        (r"\text{Monday}", ["Monday", "monday", "Monday."], ["Tuesday", "5", "dynamo"]),
        ("evil", ["Evil"], ["live", "vile"]),
        ("eighty-five", ["Eighty-five"], ["eighty-six", "85x"]),
        ("no solution", ["No solution", r"\text{no solution}"], ["0", "one solution"]),
        (r"\emptyset", [r"\varnothing"], ["0", "1"]),
        (r"\infty", ["∞", "infinity"], ["-∞", "0"]),
        (r"\log_2 3", [r"\frac{\ln 3}{\ln 2}"], [r"\log_3 2", "3"]),
        ("e^2", ["e^{2}", r"e \cdot e", "e²"], ["2e", "7.39", "2"]),
        ("72 clips", ["72", "72 clips"], ["73 clips", "72/1"]),
        ("5 m", ["5", "5 m", r"5\text{ m}"], ["6 m", "5x"]),
        (r"\$5.50", ["5.5", "$5.50"], ["5", "5.05"]),
        (r"\frac{x}{2}", ["x/2", "0.5x", r"\frac12 x"], ["2x", "x"]),
        ("12:30", ["12:30"], ["12:31"]),
    ],
)
def test_math_both_ways(reference: str, right: list[str], wrong: list[str]) -> None:
    asked = prompt(answer=reference, answer_format=("<ans>", "</ans>"))
    verdicts = {answer: VERIFIERS["math"](asked, f"<ans>{answer}</ans>").outcome for answer in (*right, *wrong)}
    assert verdicts == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.50", "1234.5"), ("about 12,500 people", "12500"), ("-3", "-3"), ("1e5", "100000"), ("-$5", "-5"),
        (r"4.5\times10^{-3}", "0.0045"), ("1.5 × 10^3", "1500"), ("1\u202f234", "1234"), (r"1\,234", "1234"),
        ("a 72-hour day", "72"), ("5 m", "5"), ("5m", "5"), ("10 s", "10"), ("5cm", "5"), ("5 m/s^2", "5"),
        ("$5/hour", "5"), ("5 μm", "5"), ("共5人", "5"), ("US$5", "5"), ("x_1 = 5", "5"), ("x is 5", "5"),
        ("A 5", "5"), ("5°C", "5"),
    ],
)  # fmt: skip
def test_as_number(text: str, number: str) -> None:
    assert as_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "3*4", "A B C D", "3x", "3 x", "3y", "3π", r"3\pi", "5pi", "5 xy", "5i", "5²", "½", "x>5", "x<5", "x≥5",
        r"x\le5", "|-5|", r"\left|5\right|", "√25", "sqrt(25)", r"\sqrt{25}", "log 5", "f(3)", "5(x)", "5!", "5/1",
        "--5", "5-x", "minus 5", "x² = 5", "2x = 5", "-x = 5", "more than 5", "(x, 5)", "(5, 6)", "10^6", "5e", "0x5",
        "1 234", "5 = x", "3 = 3", "∞5", "1" * 201,
    ],
)  # fmt: skip
def test_as_number_of_what_is_none(text: str) -> None:
    assert as_number(text) is None


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
    assert solved("auto", r"\frac{1}{2}", "The answer is 1/2.")
    assert solved("auto", "1/2", r"It is \boxed{\frac12}")
    assert solved("auto", r"x^2+1", r"\boxed{1 + x^2}")
    assert not solved("auto", "2024-05-01", r"\boxed{2018}")  # a date is no difference


def test_what_the_data_lacks_is_an_error_that_names_the_row() -> None:
    with pytest.raises(DataError, match=r"prompt p1: tests\[1\] has no 'output'"):
        VERIFIERS["code"](prompt(tests=(DOUBLED[0], {"input": 1})), "x")
    with pytest.raises(DataError, match="prompt p1: no 'tests'"):
        VERIFIERS["code"](prompt(answer="1"), "x")
    with pytest.raises(DataError, match="prompt p1 has no 'answer'"):
        VERIFIERS["math"](prompt(), "1")


def test_tests_that_cannot_run_are_a_failure_to_judge_that_names_the_prompt() -> None:
    for tests in (("assert f( == 1",), ("def check(f): assert f() == 1",)):
        with pytest.raises(JudgeError, match="prompt p1: tests: "):
            VERIFIERS["code"](prompt(tests=tests), "def f(): return 1")


def test_what_is_written_may_differ_in_how_numbers_end() -> None:
    assert same_text("0.30000000000000004 a\n1.50\n", "0.3 a\n1.5")
    for output, expected in [("7", "07"), ("1.5", "1.6"), ("1.5 2", "1.5"), ("1.5\n2", "1.5 2"), ("v1.0", "v1.00")]:
        assert not same_text(output, expected)


def test_programs_have_the_limits_that_are_set() -> None:
    slow = "import time\ndef f(x):\n    while time.process_time() < 0.5: pass\n    return x"
    large = "def f(x):\n    return len(bytes(300 << 20)) and x"
    fields: dict[str, Any] = {"tests": ({"input": 1, "output": 1},)}
    try:
        limit_programs(cpu_seconds=0.2, wall_seconds=20.0, memory_mib=512)
        assert VERIFIERS["code"](prompt(**fields), slow).reason == "test 1 of 1: CPU time limit"
        assert solved("code", None, large, **fields)
        limit_programs(cpu_seconds=1.0, wall_seconds=20.0, memory_mib=256)
        assert solved("code", None, slow, **fields)
        assert VERIFIERS["code"](prompt(**fields), large).reason == "test 1 of 1: MemoryError"
    finally:
        limit_programs(**SandboxConfig().model_dump())


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


@pytest.mark.parametrize(
    "reference", ["", "$", r"\frac{1}{", "²", r"\neg p", pytest.param("1" * 100_000, id="100 kB of digits")]
)
@pytest.mark.parametrize("answer", ["5", "x+1", "Monday"])
def test_a_reference_that_nothing_can_equal_is_an_error_that_names_the_prompt(reference: str, answer: str) -> None:
    with pytest.raises(JudgeError) as caught:
        solved("math", reference, f"<ans>{answer}</ans>", answer_format=("<ans>", "</ans>"))
    message = (
        f"prompt p1: answer {reference[:80]!r} cannot be read as mathematics; mend it, or compare it as text by 'exact'"
    )
    assert str(caught.value) == message


@pytest.mark.parametrize("reference", ["No.", "6:00 p.m.", r"\text{(A), (B)}", "eighty-five"])
def test_a_reference_in_words_is_compared_as_text(reference: str) -> None:
    asked = {"answer_format": ("<ans>", "</ans>")}
    assert solved("math", reference, f"<ans>{reference.upper()}</ans>".replace("TEXT", "text"), **asked)
    assert not solved("math", reference, "<ans>Tuesday</ans>", **asked)
    assert not solved("math", reference, "<ans>x+1</ans>", **asked)


def test_the_reason_says_what_an_answer_is_not() -> None:
    for reference, answer, reason in [
        ("5", "x>5", "the answer is not one number"),
        (r"\frac{1}{2}", "0.25+0.25", "the answer is not one number"),
        ("x", "y", "wrong answer"),
        ("x", "((", "the answer cannot be read as mathematics"),
        ("x", "y" * 5000, "too large to compare"),
    ]:
        score = VERIFIERS["math"](prompt(answer=reference, answer_format=("=>", "")), f"=> {answer}")
        assert score == Score(0.0, False, reason, {"format": 1.0, "correct": 0.0})


HUGE = [
    pytest.param("1" * 100_000, id="100 kB of digits"),
    pytest.param(r"\frac{1}{" * 150 + "2" + "}" * 150, id="nested fractions"),
    pytest.param(r"\frac{1}{" * 9_000 + "2" + "}" * 9_000, id="100 kB of nested fractions"),
    pytest.param("10^10^10", id="10^10^10"),
    pytest.param("10^{10^{10}}", id="10^{10^{10}}"),
    pytest.param("(10^{10})!", id="(10^{10})!"),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[MathWorker]:
    math_worker = MathWorker(cpu_seconds=0.5)
    yield math_worker
    math_worker.close()


@pytest.mark.parametrize("text", HUGE)
def test_what_is_huge_hangs_nobody(worker: MathWorker, text: str) -> None:
    equal, reason = worker.compare(text, "x+1")
    assert not equal
    assert reason in ("", "too large to compare", "the answer cannot be read as mathematics")
    try:
        equal, reason = worker.compare("x+1", text)
        assert not equal
        assert reason in ("", "too large to compare")  # where "7" is compared within the limit, and "x+1" is not
    except DataError as error:
        assert re.search("cannot be read as mathematics|too large to compare with anything", str(error))  # noqa: PT017
    assert worker.compare("1+x", "x+1") == (True, "")
    assert not solved("math", "5", text)


def test_too_large_an_answer_is_unsolved_and_too_large_a_reference_an_error(worker: MathWorker) -> None:
    assert worker.compare("10^{10^{10}}", "x+1") == (False, "too large to compare")
    with pytest.raises(DataError, match=r"^answer '10\^\{10\^\{10\}\}' is too large to compare with anything$"):
        worker.compare("7", "10^{10^{10}}")
