"""An environment of the tiny world: a calculator that checks the policy's working, `environment:
posttrain.tiny.calculator:reply`.

The policy writes `47+30=78+8=86`; the calculator answers `47+30=77`, and the policy goes on. Equations run on: what
stands behind a sign of equality is the value of what stands before it, and may begin the next equation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from rollouts.types import Prompt

MAX_REPLIES = 2
"""Replies in one rollout; after so many the policy's turn is its last, right or wrong."""

# The value is only looked at, so that the next equation may begin with it. Bounded, so that no turn costs more than
# moments; and what belongs to a longer expression, a decimal or a word is left alone rather than read in part.
_EQUATION = re.compile(
    r"(?<![\w.,+*/)-])(-?\d{1,9}(?: ?[-+*] ?\d{1,9}){1,15}) ?= ?(?=(-?\d{1,30})(?!\d|[.,]\d))", re.ASCII
)
_TERM = re.compile(r"([-+]?)(\d+(?:\*\d+)*)")


def reply(prompt: Prompt, turns: list[str]) -> str | None:
    """The first wrong equation of the last turn, put right, such as `47+30=77`.

    None, which ends the conversation: where all equations are right or there is none, where the prompt is not of the
    capability `math`, and after `MAX_REPLIES` replies.
    """
    if prompt.capability != "math" or len(turns) > MAX_REPLIES:
        return None
    for expression, stated in equations(turns[-1]):
        right = value(expression)
        if right != stated:
            return f"{expression}={right}"
    return None


def equations(text: str) -> Iterator[tuple[str, int]]:
    """The equations of a text with the values that they state: `22+20=42+5=47` is `22+20`, 42 and `42+5`, 47."""
    for found in _EQUATION.finditer(text):
        yield found[1].replace(" ", ""), int(found[2])


def value(expression: str) -> int:
    """The value of whole numbers joined by +, - and *, without spaces; products go first."""
    return sum(
        (-1 if sign == "-" else 1) * math.prod(map(int, factors.split("*")))
        for sign, factors in _TERM.findall(expression)
    )
