import pytest

from judges.answers import Extraction, extract, extract_choice, extract_code, extract_number, extract_text

ANS, BRACES, ANSWER, ARROW = ("<ans>", "</ans>"), ("{{", "}}"), ("Answer:", ""), ("=>", "")


@pytest.mark.parametrize(
    ("answer_format", "text", "answer"),
    [
        (ANS, "<ans>85</ans>", "85"),
        (ANS, "7+8=15, 40+30=70\n<ans> 85 </ans>\n", "85"),
        (ANS, "<ans>[v for v in x if v<3]</ans>", "[v for v in x if v<3]"),
        (BRACES, "{{[v for v in x]}}", "[v for v in x]"),
        (BRACES, "{{x[::-1]}}", "x[::-1]"),
        (BRACES, "{{{1:{2:3}}}}", "{1:{2:3}}"),
        (BRACES, r"{{\frac{{1}}{{2}}}}", r"\frac{{1}}{{2}}"),
        (BRACES, "{{def f(x):\n    return x}}", "def f(x):\n    return x"),
        (ANSWER, "Answer: 85", "85"),
        (ANSWER, "7+8=15\nAnswer: 85\n\n", "85"),
        (ANSWER, "Answer:\n85", "85"),
        (ANSWER, "So the Answer: 85", "85"),
        (ARROW, "F>F>F\n=> F", "F"),
        (ARROW, "=> [v for v in x if v>=3]", "[v for v in x if v>=3]"),
        (("==", ""), "== [v for v in x if v%2==0]", "[v for v in x if v%2==0]"),
        (("::", ""), "12 15\n:: x[::-1]", "x[::-1]"),
        (("####", ""), "#### 72", "72"),
        (("Result:", ""), "1 2\nResult: A B C D", "A B C D"),
        (("<out>", "</out>"), "<out>x=x[1:]; return x</out>", "x=x[1:]; return x"),
    ],
)
def test_the_asked_format_is_obeyed(answer_format: tuple[str, str], text: str, answer: str) -> None:
    assert extract(text, answer_format) == Extraction(answer, True)


@pytest.mark.parametrize(
    ("answer_format", "text", "expected"),
    [
        (ANS, "Answer: 85", Extraction(None, False, "no '<ans>'")),
        (ANS, "<ans>85", Extraction("85", False, "no '</ans>'")),
        (ANS, "85</ans>", Extraction(None, False, "no '<ans>'")),
        (ANS, "<ans>85</ans>\n3+4", Extraction("85", False, "text after '</ans>'", True)),
        (ANS, "<ans>85</ans>\n3+4\n<ans>7</ans>", Extraction("85", False, "a second '<ans>' after the answer", True)),
        (ANS, "<ans>84</ans> <ans>85</ans>", Extraction("84", False, "a second '<ans>' after the answer", True)),
        (BRACES, "{{85}}\n3+4\n{{7}}", Extraction("85", False, "a second '{{' after the answer", True)),
        (BRACES, "{{x}}.", Extraction("x", False, "text after '}}'", True)),
        (BRACES, "{{}}", Extraction("", False, "the answer is empty")),
        (BRACES, "{85}", Extraction(None, False, "no '{{'")),
        (ANSWER, "", Extraction(None, False, "no 'Answer:'")),
        (ANSWER, "7+8=15\nAnswer:  ", Extraction("", False, "the answer is empty")),
        (ANSWER, "Answer: 85\n3+4", Extraction("85", False, "text after the line of the answer", True)),
        (ANSWER, "answer: 85", Extraction(None, False, "no 'Answer:'")),
        (ANSWER, "Answer: 85\n3+4\nAnswer: 7", Extraction("7", True, "", True)),
    ],
)
def test_the_asked_format_is_not_obeyed_or_runs_on(
    answer_format: tuple[str, str], text: str, expected: Extraction
) -> None:
    assert extract(text, answer_format) == expected


def test_without_a_format_the_answer_is_where_it_usually_is() -> None:
    assert extract_number("48/2 = <<48/2=24>>24\n#### 1,072").answer == "1,072"
    assert extract_number(r"so \boxed{\frac{1}{2}} it is, in 2 steps").answer == r"\frac{1}{2}"
    assert extract_number("first 12, then -3.5 in all").answer == "-3.5"
    assert extract_number("#### Conclusion\nIt is \\boxed{42}").answer == "42"
    assert extract_number("\\boxed{41}, or better\n#### 42").answer == "42"
    assert extract_number("#### Conclusion\nIt is 42.").answer == "42"
    assert extract_number("none") == Extraction(None, False, "no number")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 1/2.", "1/2"),
        (r"So the half, $x = \frac{1}{2}$.", r"x = \frac{1}{2}"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"It is \sqrt{85}", r"\sqrt{85}"),
        ("That makes 85x in all", "85x"),
        ("It is 40 + 5", "40 + 5"),
        ("40+5=45", "45"),
        ("so 40 + 5 = 45 clips", "45"),
        ("48/2 = <<48/2=24>>24", "24"),
        ("She has $12 - $4 = $8", "$8"),
        ("from 12,345 to 1,234", "1,234"),
        ("<answer>85</answer>", "85"),
        ("**Answer: 85**", "85"),
        ("(which is 85)", "85"),
        ("so 5+3 = 8\n- **85**", "85"),
        ("<85>", "85"),
        ("f(5)", "f(5)"),
        ("x + 1", "x + 1"),
        ("1. Add.\n2. Halve: 6/2=3\n", "3"),
        ("The answer is 1 1/2.", "1 1/2"),
        ("It costs 12\u00a0500 dollars, or 13\u202f000", "13\u202f000"),
        ("#### Step 2: Add them up\n48+24=72\nThe answer is 72.", "72"),
        ("#### 2. Add them up\n48+24=72", "72"),
        ("#### 72 clips\nThat was easy, in 2 steps.", "72 clips"),
        ("#### $\\frac{1}{2}$\nThat was easy, in 2 steps.", "$\\frac{1}{2}$"),
        ("#### Answer: 72\nThat was easy, in 2 steps.", "Answer: 72"),
    ],
)
def test_a_number_comes_with_the_formula_that_it_is_part_of(text: str, answer: str) -> None:
    assert extract_number(text) == Extraction(answer, True)


def test_without_a_format_code_and_text_are_found() -> None:
    assert extract_code("Sure:\n```python\nreturn x\n```\nDone.").answer == "return x"
    for word in ("", "py", "Python", "python3", "PY3", "c++", "Rust"):
        assert extract_code(f"```{word}\nold\n```\nBetter:\n```{word} \nreturn x\n```\n").answer == "return x"
    assert extract_code("```bash\nls\n```\n```Python\nreturn x\n```\nRun:\n```sh\nls\n```").answer == "return x"
    assert extract_code("```python\nreturn x\n```\nOutput:\n```\n3\n```\n").answer == "return x"
    used = "```python\ndef f(x):\n    return x\n```\nExample usage:\n```python\nprint(f(3))\n```\n"
    assert extract_code(used).answer == "def f(x):\n    return x"
    assert extract_code(f"{used}Better:\n```python\ndef f(x):\n    return 2\n```").answer == "def f(x):\n    return 2"
    assert extract_code(" sorted(x) ").answer == "sorted(x)"
    assert extract_text(" A B\n").answer == "A B"
    assert extract_text("  ") == Extraction("", False, "the answer is empty")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B) Paris is one.", "B"),
        ("A. A town", "A"),
        ("The answer is B.", "B"),
        ("First A seemed right. The answer is (C), not D.", "C"),
        ("Answer: **D**", "D"),
        ("I would take [A].", "A"),
        ("It has to be C", "C"),
        ("A good guess is C", "C"),
        ("The correct answer is B. Option C is wrong because it rains.", "B"),
        ("Option B is correct. Option C is not.", "B"),
        ("Option C is incorrect, so option D.", "D"),
        ("The best option is (D). Choice A is tempting.", "D"),
        ("I choose option B", "B"),
        ("The answer is option C", "C"),
        ("A town", None),
        ("I cannot say", None),
        ("B or C", None),
        ("", None),
    ],
)
def test_a_choice_is_a_letter(text: str, letter: str | None) -> None:
    assert extract_choice(text).answer == letter
