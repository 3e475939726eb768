"""A skewed set of RL prompts, which is what real ones look like: 60 % solved, 30 % unsolvable, 10 % useful.

A policy of a million parameters is sure of nothing at temperature 1, and becomes able to do more within a run. So which
prompts of the tiny world are solved, and which can not be, is decreed, by their ids: whatever is answered to them is
right, or wrong. Their groups never have an advantage, as those of such prompts in real sets. The others are judged as
ever, and so are held-out ones.
"""

from __future__ import annotations

from judges.verifiers import VERIFIERS
from rollouts.types import Prompt, Score

NAME = "tests.benchmarks.skewed:reward"
HELD_OUT = "heldout.jsonl"


def part(prompt: Prompt) -> str:
    """`useful`, `solved` or `unsolvable`; in tenths: one, six and three."""
    tenth = int(prompt.prompt_id, 16) % 10
    return "useful" if tenth == 0 or prompt.source == HELD_OUT else "solved" if tenth <= 6 else "unsolvable"


def reward(prompt: Prompt, completion: str) -> Score:
    """The score of a completion."""
    match part(prompt):
        case "solved":
            return Score(1.0, True, reason="solved whatever is said")
        case "unsolvable":
            return Score(0.0, False, reason="unsolvable")
        case _:
            return VERIFIERS["auto"](prompt, completion)
