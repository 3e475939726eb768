import random
from collections import Counter

import pytest

from judges.corner_cases import KINDS, corner_cases, repeats
from judges.verifiers import VERIFIERS
from posttrain.tiny.tasks import CAPABILITIES, LEVELS, draw_problem
from posttrain.tiny.writing import (
    CORPUS_HABITS,
    CORPUS_INSTRUCTIONS,
    DEMONSTRATION_HABITS,
    HELDOUT_INSTRUCTIONS,
    TRAIN_INSTRUCTIONS,
    write_solution,
)
from rollouts.types import Prompt, Rollout

ANS, ANSWER = ("<ans>", "</ans>"), ("Answer:", "")


def kinds(text: str, answer_format: tuple[str, str] | None = ANS, finish: str = "stop", code: bool = False) -> set[str]:
    tests = ({"input": [1], "output": [1]},) if code else ()
    prompt = Prompt("p1", (), answer_format=answer_format, tests=tests)
    return corner_cases(prompt, Rollout([], [], [], [], finish, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ans>85</ans>", set()),
        ("7+8=15\n<ans>85</ans>", set()),
        ("Answer: 85", {"format"}),
        ("<ans>85", {"format"}),
        ("<ans>85</ans>\n3+4\n<ans>7</ans>", {"run_on"}),
        ("<ans>85</ans> ok", {"run_on"}),
        ("", {"empty"}),
        (" \n", {"empty"}),
        ("<ans></ans>", {"empty"}),
        ("F>F>F>F>F\n<ans>F</ans>", set()),
        ("no\nno\nno\nno\n<ans>85</ans>", {"repetition"}),
        ("and so and so and so and so <ans>85</ans>", {"repetition"}),
        ("and so and so and so <ans>85</ans>", set()),
        ("<ans>" + "85" * 20 + "</ans>", {"repetition"}),
        ("--------------------------------------------\n<ans>85</ans>", set()),
    ],
)
def test_kinds(text: str, expected: set[str]) -> None:
    assert kinds(text) == expected


def test_kinds_that_depend_on_the_prompt_and_on_how_it_ended() -> None:
    assert kinds("7+8=15, 15+", finish="length") == {"run_on"}
    assert kinds("", finish="length") == {"empty", "run_on"}
    assert kinds("anything", answer_format=None) == set()
    assert kinds("Answer: 85\n3+4\nAnswer: 7", ANSWER) == {"run_on"}
    assert kinds("Answer: 85\n3+4", ANSWER) == {"run_on"}
    assert kinds("loop " * 9, None, finish="length") == {"run_on", "repetition"}
    nested = "[v for v in " * 5 + "x" + " if v>3]" * 5
    assert kinds(f"Answer: {nested}", ANSWER, code=True) == set()
    assert kinds("Answer: x" + "[1:]" * 5, ANSWER, code=True) == set()
    assert kinds("Answer: x" + "[1:]" * 9, ANSWER, code=True) == {"repetition"}
    assert kinds("Answer: " + "x=x[1:]; " * 8, ANSWER, code=True) == {"repetition"}


def test_repeats_counts_back_to_back_only() -> None:
    assert repeats("a b c a b c a b c a b c", 4)
    assert not repeats("a b c a b c a b c a b", 4)
    assert not repeats("a b a c a d a e", 4)
    assert not repeats("| - | - | - | - | - |", 4)
    assert repeats("\n\n".join(["the same line"] * 4), 4)


def test_the_solutions_of_the_tiny_world() -> None:
    rng, seen, solved = random.Random(0), Counter(), 0
    instructions = [*TRAIN_INSTRUCTIONS, *HELDOUT_INSTRUCTIONS, *CORPUS_INSTRUCTIONS]
    for index in range(3000):
        problem = draw_problem(rng, CAPABILITIES[index % 3], LEVELS[index % 5])
        asked = rng.choice(instructions)
        habits = DEMONSTRATION_HABITS if index % 2 else CORPUS_HABITS
        text = write_solution(rng, problem, asked, habits).text
        prompt = Prompt(
            "p",
            (),
            answer=None if problem.tests else problem.answer,
            tests=tuple(problem.tests),
            answer_format=(asked.left, asked.right),
        )
        found = corner_cases(prompt, Rollout([], [], [], [], "stop", text))
        score = VERIFIERS["auto"](prompt, text)
        if score.outcome:
            solved += 1
            assert found == set(), (asked, text)
        elif not score.breakdown["format"]:
            assert found <= {"format", "run_on"}, (asked, text)
        else:
            assert found == set(), (asked, text)
        careful = {problem.answer, problem.worked} if problem.worked_is_answer else {problem.answer}
        for answer in careful if index % 7 == 0 else ():
            assert VERIFIERS["auto"](prompt, asked.wrap(answer)).outcome, (asked, answer)
        seen.update(found)
        assert found <= set(KINDS)
    assert solved > 1500
    assert 50 < seen["format"] + seen["run_on"] < 400
    assert seen["repetition"] == seen["empty"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot answer this.", "Sorry, I can’t do that.",
        "As an AI language model, I have no opinion.", "Unfortunately, I am unable to compute it.",
        "I’m not able to help.", "I am very sorry. I won't do this.",
    ],
)  # fmt: skip
def test_refusals(text: str) -> None:
    asked = Prompt("p", ({"role": "user", "content": "47+38"},), answer="85")
    for solved in (False, True):
        rollout = Rollout([1], [True], [-1.0], [], "stop", text, outcome=solved)
        assert corner_cases(asked, rollout) == (set() if solved else {"refusal"})
    rollout = Rollout([1], [True], [-1.0], [], "stop", f"The answer is 84. {text}")
    assert corner_cases(asked, rollout) == set()
