"""The tiny world: its problems, its writers, and that nothing held out is ever shown before."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from judges.corner_cases import corner_cases
from judges.verifiers import VERIFIERS
from posttrain.config import resolve_data
from posttrain.tiny import data
from posttrain.tiny.tasks import CAPABILITIES, LEVELS, Problem, draw_problem
from posttrain.tiny.writing import (
    CORPUS_INSTRUCTIONS,
    HELDOUT_INSTRUCTIONS,
    TRAIN_INSTRUCTIONS,
    Habits,
    Instruction,
    write_solution,
)
from rollouts.types import Rollout

CAREFUL = Habits(worked=0.5, sloppy_by_level=(0.0,) * 5, slip=0.0, ignores_format=0.0, runs_on=0.0)
SLOPPY = Habits(worked=0.0, sloppy_by_level=(1.0,) * 5, slip=1.0, ignores_format=0.0, runs_on=0.0)
DEFIANT = Habits(worked=0.0, sloppy_by_level=(0.0,) * 5, slip=0.0, ignores_format=1.0, runs_on=0.0)


def world(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(resolve_data(f"tiny:{name}")).read_text().splitlines()]


def problems(capability: str, each: int) -> list[Problem]:
    rng = random.Random(f"test/{capability}")
    return [draw_problem(rng, capability, level) for level in LEVELS for _ in range(each)]


def solved(problem: Problem, instruction: Instruction, text: str) -> bool:
    return VERIFIERS["auto"](data.as_prompt(problem, instruction), text).outcome


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_careful_solutions_are_solved_in_every_format_and_style(capability: str) -> None:
    rng = random.Random(0)
    instructions = TRAIN_INSTRUCTIONS + HELDOUT_INSTRUCTIONS
    styles: Counter[bool] = Counter()
    for problem, instruction in zip(problems(capability, 12), itertools.cycle(instructions)):
        solution = write_solution(rng, problem, instruction, CAREFUL)
        styles[solution.worked] += 1
        assert solved(problem, instruction, solution.text), (problem, solution)
        rollout = Rollout([], [], [], [], "stop", solution.text)
        assert corner_cases(data.as_prompt(problem, instruction), rollout) == set(), solution
    assert min(styles[True], styles[False]) > 10


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_sloppy_solutions_are_not_solved(capability: str) -> None:
    rng = random.Random(1)
    outcomes = [
        solved(problem, instruction, write_solution(rng, problem, instruction, SLOPPY).text)
        for problem, instruction in zip(problems(capability, 8), itertools.cycle(TRAIN_INSTRUCTIONS))
    ]
    # A wrong operation on a list may do what the right one does (`sort` after `sort`).
    assert sum(outcomes) / len(outcomes) <= (0.35 if capability == "code" else 0.0)


def test_a_right_answer_in_another_format_is_not_solved() -> None:
    rng, asked = random.Random(2), TRAIN_INSTRUCTIONS[0]
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for problem in problems("math", 20):
        text = write_solution(rng, problem, asked, DEFIANT).text
        outcomes[asked.left in text, solved(problem, asked, text)] += 1
    assert set(outcomes) == {(True, True), (False, False)}


def test_worked_math_adds_up() -> None:
    for problem in problems("math", 20):
        steps = problem.worked.replace(", ", "=").split("=")
        values = [eval(step) for step in steps]  # `47+30=77+8=85`: each side of each sign is worth the next
        for left, right in itertools.pairwise(steps):
            assert eval(left) == eval(right.split("+")[0].split("-")[0]), problem
        assert values[-1] == int(problem.answer) == eval(problem.question)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_seed_fixes_the_problems_and_the_difficulty_grows(capability: str) -> None:
    assert problems(capability, 5) == problems(capability, 5)
    lengths = {level: [len(p.question) for p in problems(capability, 30) if p.difficulty == level] for level in LEVELS}
    means = [sum(lengths[level]) / len(lengths[level]) for level in LEVELS]
    assert means == sorted(means)


def test_code_has_hidden_tests_that_the_answer_passes_and_no_other_answer() -> None:
    for problem in problems("code", 10):
        assert len(problem.tests) == 4
        for test in problem.tests:
            assert eval(problem.answer, {"x": test["input"]}) == test["output"]
        assert data.prompt_row(problem, TRAIN_INSTRUCTIONS[0])["answer"] is None


# -------------------------------------------------------------------------------------------------------- the data


def test_held_out_problems_occur_in_no_training_data() -> None:
    rows = world("heldout")
    heldout = {data.row_hash(row) for row in rows}
    assert len(rows) == len(heldout) >= 600
    for row in world("rl"):
        assert data.row_hash(row) not in heldout
    for row in world("sft"):
        assert data.content_hash(row["capability"], row["messages"][1]["content"]) not in heldout


def test_held_out_problems_occur_nowhere_in_pre_training() -> None:
    """Also not as the question that a writer goes on with after the answer."""
    questions = {row["messages"][-1]["content"] for row in world("heldout")}
    excluded = {data.row_hash(row) for row in data.heldout_rows(0)}
    seen = 0
    for part in range(2):
        for _, user, assistant in itertools.islice(data.corpus(0, excluded, part), 25_000):
            assert user["content"] not in questions
            assert questions.isdisjoint(assistant["content"].split("\n")), assistant
            seen += 1
    assert seen == 50_000


def test_the_committed_data_is_what_the_recipe_makes(tmp_path) -> None:
    from posttrain.tiny.build import write_data

    write_data(tmp_path, 0)
    for name in ("heldout", "rl", "sft", "instructions"):
        made = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert made == world(name), name


def test_some_instructions_are_held_out() -> None:
    trained = {row["messages"][0]["content"] for name in ("sft", "rl") for row in world(name)}
    corpus = {instruction.text for instruction in CORPUS_INSTRUCTIONS}
    for instruction in HELDOUT_INSTRUCTIONS:
        assert instruction.text not in trained | corpus
    asked = Counter(row["instruction"] in {i.instruction_id for i in HELDOUT_INSTRUCTIONS} for row in world("heldout"))
    assert 0.1 < asked[True] / asked.total() < 0.25


def test_demonstrations_have_the_easy_majority_and_both_styles_of_a_real_set() -> None:
    rows = world("sft")
    levels = Counter(row["difficulty"] for row in rows)
    assert [levels[level] for level in LEVELS] == sorted(levels.values(), reverse=True)
    assert levels[1] + levels[2] > len(rows) / 2
    styles = Counter(row["style"] for row in rows)
    assert 0.05 < styles["worked"] / len(rows) < 0.5
    assert set(Counter(row["capability"] for row in rows)) == set(CAPABILITIES)
