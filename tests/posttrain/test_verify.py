"""`posttrain verify`: rows in, verdicts out, in order; a wrong file is one line and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.progress import say
from posttrain.verify import Verified, print_summary, verify
from rollouts.errors import UserError

ADD = "def add(a, b):\n    return a + b"


def judged(folder: Path, kind: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    file, out = folder / "rows.jsonl", folder / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = verify(str(file), kind, out)
    print_summary(kind, found, out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_math(tmp_path: Path) -> None:
    rows = judged(
        tmp_path,
        "math",
        {"completion": "48/2 = 24, so 72.\n#### 72", "answer": "She sold 72.\n#### 72"},
        {"completion": r"It is $\boxed{\frac{1}{2}}$.", "answer": "0.5"},
        {"completion": "#### 73", "answer": "#### 72", "question": "?"},
        {"completion": "I do not know", "answer": 72},
    )
    assert rows == [
        {"solved": True, "score": 1.0, "reason": "", "error": None},
        {"solved": True, "score": 1.0, "reason": "", "error": None},
        {"solved": False, "score": 0.0, "reason": "wrong answer", "error": None},
        {"solved": False, "score": 0.0, "reason": "no number", "error": None},
    ]


def test_code_by_all_kinds_of_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = judged(
        tmp_path,
        "code",
        {"completion": ADD, "tests": "assert add(1, 2) == 3\nassert add(2, 2) == 4"},
        {"completion": f"So:\n```python\n{ADD}\n```", "tests": ["assert add(1, 2) == 3", "assert add(1, 1) == 3"]},
        {"completion": "print(int(input()) * 2)", "tests": [{"input": "3\n", "output": "6"}]},
        {"completion": "def f(x): return x * 2", "tests": [{"input": 3, "output": 7}]},
        {"completion": ADD, "tests": [{"input": [1, 2], "output": 3}]},
        {"completion": ADD, "tests": "assert add(1, 2 == 3"},
        {"completion": "import os; os._exit(0)", "tests": "assert add(1, 2) == 3"},
    )
    assert [row["solved"] for row in rows] == [True, False, True, False, True, False, False]
    assert rows[1]["reason"] == "test 2 of 2: AssertionError"
    assert rows[3]["reason"] == "test 1 of 1: wrong output"
    assert [row["error"] for row in rows] == [None] * 5 + [rows[5]["error"], None]
    assert rows[5]["error"].startswith("tests: SyntaxError")
    shown = capsys.readouterr().err
    assert "code: 3 of 6 judged rows solved (50.0%), 1 could not be judged" in shown
    assert "test 2 of 2: AssertionError" in shown


def test_what_could_not_be_judged_has_no_score_and_is_in_no_percentage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"completion": r"\boxed{1}", "answer": r"\frac{1}{"}
    rows = judged(tmp_path, "math", broken, {"completion": "#### 72", "answer": "72"})
    assert (rows[0]["solved"], rows[0]["score"], rows[0]["reason"]) == (False, None, "")
    assert rows[0]["error"].startswith(r"answer '\\frac{1}{' cannot be read as mathematics")
    assert rows[1] == {"solved": True, "score": 1.0, "reason": "", "error": None}
    shown = capsys.readouterr().err
    assert "math: 1 of 1 judged rows solved (100.0%), 1 could not be judged" in shown
    assert "error: answer" in shown
    (tmp_path / "out.jsonl").unlink()
    assert [row["score"] for row in judged(tmp_path, "math", broken)] == [None]
    assert "math: 0 of 0 judged rows solved, 1 could not be judged" in capsys.readouterr().err


def test_format_exact_and_auto(tmp_path: Path) -> None:
    asked = {"format": ["<ans>", "</ans>"]}
    rows = judged(tmp_path, "format", {"completion": "<ans>1</ans>", **asked}, {"completion": "1", **asked})
    assert [row["solved"] for row in rows] == [True, False]
    (tmp_path / "out.jsonl").unlink()
    rows = judged(tmp_path, "auto", {"completion": "a b", "answer": "A B"}, {"completion": ADD, "tests": ["add(1, 2)"]})
    assert [row["solved"] for row in rows] == [True, True]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("maths", {"completion": "1", "answer": "1"}, "--kind: no verifier 'maths'; did you mean 'math'?"),
        (
            "math",
            {"completion": "1"},
            r"rows.jsonl:2: no field 'answer', which 'math' needs \(fields there: comp",
        ),
        ("code", {"completion": "1", "answer": "1"}, "rows.jsonl:2: no field 'tests'"),
        ("auto", {"completion": "1"}, "rows.jsonl:2: neither 'answer' nor 'tests'"),
        ("math", {"answer": "1"}, "rows.jsonl:2: no field 'completion'"),
        ("math", {"completion": 1, "answer": "1"}, "rows.jsonl:2: field 'completion': expected a text"),
        ("code", {"completion": "1", "tests": [1]}, "rows.jsonl:2: field 'tests': expected a text, a list of texts or"),
    ],
)
def test_a_wrong_file_is_one_line_and_writes_nothing(
    tmp_path: Path, kind: str, row: dict[str, Any], message: str
) -> None:
    good = {"completion": "1", "answer": "1", "tests": ["True"]}
    with pytest.raises(UserError, match=message):
        judged(tmp_path, kind, good, row)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_reason_may_look_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary("code", [Verified(False, 0.0, "ValueError: [/x] and [bold]")], Path("out"))
    assert "ValueError: [/x] and [bold]" in capsys.readouterr().err
    say("[/x] and [bold]")
    assert "[/x] and [bold]" in capsys.readouterr().err


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"out.jsonl: exists already.*--out"):
        judged(tmp_path, "math", {"completion": "1", "answer": "1"})
    assert (tmp_path / "out.jsonl").read_text() == "mine"
