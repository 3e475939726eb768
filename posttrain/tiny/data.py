"""The data of the tiny world: held-out prompts, RL prompts, demonstrations and the pre-training stream.

The held-out problems are drawn first; whatever is drawn afterwards and has the content of a held-out problem is
drawn again, in every other set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from posttrain.tiny.tasks import CAPABILITIES, LEVELS, Problem, draw_problem
from posttrain.tiny.writing import (
    CORPUS_HABITS,
    CORPUS_INSTRUCTIONS,
    DEMONSTRATION_HABITS,
    HELDOUT_INSTRUCTIONS,
    RL_INSTRUCTIONS,
    TRAIN_INSTRUCTIONS,
    Instruction,
    write_solution,
)
from rollouts.types import Prompt

Row = dict[str, Any]

CORPUS_LEVELS = (0.25, 0.23, 0.20, 0.17, 0.15)
"""How often each difficulty occurs in pre-training."""
DEMONSTRATION_LEVELS = (0.38, 0.27, 0.17, 0.11, 0.07)
"""How often each difficulty occurs among demonstrations: the easy majority that a real set has."""


def content_hash(capability: str, question: str) -> str:
    """The identity of a problem, whatever instruction it is asked under."""
    return hashlib.sha256(f"{capability}\n{question}".encode()).hexdigest()[:16]


def messages(problem: Problem, instruction: Instruction) -> list[dict[str, str]]:
    """The prompt as chat messages."""
    return [{"role": "system", "content": instruction.text}, {"role": "user", "content": problem.question}]


def prompt_row(problem: Problem, instruction: Instruction) -> Row:
    """A row of the RL and held-out files."""
    return {
        "messages": messages(problem, instruction),
        "answer": None if problem.tests else problem.answer,
        "tests": problem.tests or None,
        "format": [instruction.left, instruction.right],
        "capability": problem.capability,
        "difficulty": problem.difficulty,
        "instruction": instruction.instruction_id,
    }


def unseen(rng: random.Random, capability: str, level: int, seen: set[str]) -> Problem:
    """A problem whose content is not in `seen`."""
    while True:
        problem = draw_problem(rng, capability, level)
        if content_hash(capability, problem.question) not in seen:
            return problem


def as_prompt(problem: Problem, instruction: Instruction) -> Prompt:
    """The prompt as the verifiers take it."""
    return Prompt(
        prompt_id=content_hash(problem.capability, problem.question),
        messages=tuple(messages(problem, instruction)),
        capability=problem.capability,
        answer=None if problem.tests else problem.answer,
        tests=tuple(problem.tests),
        answer_format=(instruction.left, instruction.right),
    )


def asked(row: Row) -> bool:
    """Whether a row is asked after pre-training.

    Swapped cups are not: a model of this size does not learn them in minutes (1 % solved, even after RL), and what no
    stage can solve measures nothing.
    """
    return " swap " not in row["messages"][1]["content"]


def heldout_rows(seed: int, per_level: int = 48) -> list[Row]:
    """The problems that pre-training never shows, as many of each capability and level; the held-out prompts are those
    that are `asked`. Every sixth asks in a held-out way.
    """
    rng, seen, rows = random.Random(f"{seed}/heldout"), set[str](), []
    for capability in CAPABILITIES:
        for level in LEVELS:
            for index in range(per_level):
                problem = unseen(rng, capability, level, seen)
                seen.add(content_hash(capability, problem.question))
                pool = HELDOUT_INSTRUCTIONS if index % 6 == 5 else TRAIN_INSTRUCTIONS
                rows.append(prompt_row(problem, rng.choice(pool)))
    rng.shuffle(rows)
    return rows


def row_hash(row: Row) -> str:
    """`content_hash` of a row."""
    return content_hash(row["capability"], row["messages"][-1]["content"])


def rl_rows(seed: int, heldout: set[str], per_level: int = 200) -> list[Row]:
    """RL prompts, equally many of each capability and level (fewer where the level has no more problems)."""
    rng, seen, rows = random.Random(f"{seed}/rl"), set(heldout), []
    for capability in CAPABILITIES:
        for level in LEVELS:
            for _ in range(per_level):
                problem = draw_problem(rng, capability, level)
                identity = content_hash(capability, problem.question)
                if identity in seen:
                    continue
                seen.add(identity)
                rows.append(prompt_row(problem, rng.choice(RL_INSTRUCTIONS)))
    rng.shuffle(rows)
    return rows


def demonstration_rows(seed: int, heldout: set[str], count: int = 3000) -> list[Row]:
    """Demonstrations: prompts with the solution that a careful but human writer gave."""
    rng, rows = random.Random(f"{seed}/demonstrations"), []
    for _ in range(count):
        capability = rng.choice(CAPABILITIES)
        level = rng.choices(LEVELS, DEMONSTRATION_LEVELS)[0]
        problem, instruction = unseen(rng, capability, level, heldout), rng.choice(TRAIN_INSTRUCTIONS)
        solution = write_solution(rng, problem, instruction, DEMONSTRATION_HABITS)
        rows.append(
            {
                "messages": [*messages(problem, instruction), {"role": "assistant", "content": solution.text}],
                "capability": capability,
                "difficulty": level,
                "style": "worked" if solution.worked else "terse",
            }
        )
    return rows


def instruction_rows() -> list[Row]:
    """A pool of system instructions for each capability; those that are held out are not trained with."""
    return [
        {
            "capability": capability,
            "id": instruction.instruction_id,
            "text": instruction.text,
            "format": [instruction.left, instruction.right],
            "train": train,
        }
        for capability in CAPABILITIES
        for train, pool in ((True, TRAIN_INSTRUCTIONS), (False, HELDOUT_INSTRUCTIONS))
        for instruction in pool
    ]


def _turn(rng: random.Random, instruction: Instruction, heldout: set[str]) -> tuple[Problem, str]:
    problem = unseen(rng, rng.choice(CAPABILITIES), rng.choices(LEVELS, CORPUS_LEVELS)[0], heldout)
    return problem, write_solution(rng, problem, instruction, CORPUS_HABITS).text


def corpus(seed: int, heldout: set[str], part: int = 0) -> Iterator[list[dict[str, str]]]:
    """A part of the endless pre-training stream, as conversations; each part is a stream of its own."""
    rng = random.Random(f"{seed}/corpus/{part}")
    while True:
        instruction = rng.choice(CORPUS_INSTRUCTIONS)
        problem, text = _turn(rng, instruction, heldout)
        turns = text
        while rng.random() < CORPUS_HABITS.runs_on:
            another, text = _turn(rng, instruction, heldout)
            turns += f"\n{another.question}\n{text}"
        yield [*messages(problem, instruction), {"role": "assistant", "content": turns}]
