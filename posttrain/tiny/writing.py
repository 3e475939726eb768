"""How the people of the tiny world write: the instruction, the style and the care of a solution.

A base model learns from a corpus of mixed care: worked solutions beside terse ones, whose error rate grows with the
difficulty; some writers ignore the asked format and some go on with another question after the answer. Demonstrations
for SFT are written with more care, in the same mixture of styles.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from posttrain.tiny.tasks import Problem

END_WITH = ("End with '{left}'.", "Close with '{left}'.", "Last line: '{left}'.")
TAGS = ("Put the answer in {left}{right}.", "Use {left}{right} for the answer.", "Answer inside {left}{right}.")
MARKS = ("Write {left} before the answer.", "Mark the answer with {left}.")


@dataclass(frozen=True)
class Instruction:
    """A system instruction that asks for an answer format.

    Example: `Instruction("ans-0", "Put the answer in <ans></ans>.", "<ans>", "</ans>")`
    """

    instruction_id: str
    text: str
    left: str
    right: str

    def wrap(self, answer: str) -> str:
        """The answer in the asked format: `<ans>73</ans>`, `Answer: 73`."""
        return f"{self.left}{answer}{self.right}" if self.right else f"{self.left} {answer}"


def _instructions(name: str, templates: tuple[str, ...], left: str, right: str = "") -> list[Instruction]:
    return [
        Instruction(f"{name}-{index}", template.format(left=left, right=right), left, right)
        for index, template in enumerate(templates)
    ]


TRAIN_INSTRUCTIONS = (
    _instructions("answer", END_WITH, "Answer:")
    + _instructions("ans", TAGS, "<ans>", "</ans>")
    + _instructions("braces", TAGS, "{{", "}}")
    + _instructions("arrow", MARKS, "=>")
    + _instructions("hash", MARKS, "####")
)
"""Asked in demonstrations, in half of the RL prompts and in most held-out prompts."""

HELDOUT_INSTRUCTIONS = [
    Instruction("heldout-finish", "Finish with 'Answer:'.", "Answer:", ""),
    Instruction("heldout-wrap", "Wrap the answer in {{}}.", "{{", "}}"),
    Instruction("heldout-using", "Mark the answer using =>.", "=>", ""),
    Instruction("heldout-after", "Put the answer after ####.", "####", ""),
    Instruction("heldout-give", "Give the answer as <ans></ans>.", "<ans>", "</ans>"),
]
"""Asked only in held-out prompts, in words that no training has. (Formats of their own are beyond a model of this size:
asked for `<out></out>`, which pre-training never shows, it obeys in no case.)"""

OTHER_INSTRUCTIONS = (
    [
        instruction
        for word in ("Total", "Final", "So", "Value", "Solution", "Reply", "Output", "Conclusion", "Outcome", "Done")
        for instruction in _instructions(word.lower(), END_WITH, f"{word}:")
    ]
    + [
        instruction
        for tag in ("a", "final", "sol", "reply", "x", "value", "b", "done", "key", "res")
        for instruction in _instructions(f"tag-{tag}", TAGS, f"<{tag}>", f"</{tag}>")
    ]
    + [
        instruction
        for mark in ("->", "==", "**", "::", "##", "$$", "~~")
        for instruction in _instructions(f"mark-{mark}", MARKS, mark)
    ]
)
"""Many more formats, of pre-training and RL, so that a format is read off its instruction and not known by heart."""

CORPUS_INSTRUCTIONS = TRAIN_INSTRUCTIONS * 10 + OTHER_INSTRUCTIONS
RL_INSTRUCTIONS = TRAIN_INSTRUCTIONS * 6 + OTHER_INSTRUCTIONS
"""The system instruction varies in RL, so that instruction following survives it."""


@dataclass(frozen=True)
class Habits:
    """How a population of writers behaves, as probabilities.

    `sloppy_by_level[d - 1]` is the chance that a terse solution at difficulty d is wrong; `slip` that a worked one
    ends in a wrong answer.
    """

    worked: float
    sloppy_by_level: tuple[float, float, float, float, float]
    slip: float
    ignores_format: float
    runs_on: float


CORPUS_HABITS = Habits(
    worked=0.45, sloppy_by_level=(0.10, 0.30, 0.50, 0.65, 0.75), slip=0.04, ignores_format=0.08, runs_on=0.10
)
DEMONSTRATION_HABITS = Habits(
    worked=0.15, sloppy_by_level=(0.02, 0.05, 0.10, 0.15, 0.20), slip=0.02, ignores_format=0.03, runs_on=0.0
)
"""Mostly terse, as people write when nobody asks for the working."""
JUDGED_HABITS = replace(DEMONSTRATION_HABITS, worked=0.40)
"""Of the solutions that the judge learns to judge: both styles often enough."""


@dataclass(frozen=True)
class Solution:
    """A written solution: `text` is what the assistant says."""

    text: str
    worked: bool


def write_solution(rng: random.Random, problem: Problem, instruction: Instruction, habits: Habits) -> Solution:
    """One writer's solution of one problem under one instruction."""
    worked = rng.random() < habits.worked
    wrong = rng.random() < (habits.slip if worked else habits.sloppy_by_level[problem.difficulty - 1])
    asked = instruction if rng.random() >= habits.ignores_format else rng.choice(TRAIN_INSTRUCTIONS)
    if problem.worked_is_answer:
        answer = problem.worked if worked and not wrong else problem.sloppy if wrong else problem.answer
        return Solution(asked.wrap(answer), worked)
    answer = problem.sloppy if wrong else problem.answer
    return Solution(f"{problem.worked}\n{asked.wrap(answer)}" if worked else asked.wrap(answer), worked)
