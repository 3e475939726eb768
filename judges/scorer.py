"""Makes the scorer that the configuration names under `reward`: a built-in verifier, or the user's own function.

The user's function is

    def reward(prompt: Prompt, completion: str) -> float | bool | Score

and is named by its dotted path, `my_package.my_module:reward`; the current directory is importable. A bool is the
outcome, with a reward of 1.0 or 0.0; a number is the reward, and the outcome is whether it is at least 0.5; a `Score`
is taken as it is. Whatever the function says, a truncated rollout is unsolved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from judges.verifiers import VERIFIERS
from rollouts.dotted import describe, load_dotted, nearest
from rollouts.errors import JudgeError, UserError
from rollouts.types import Prompt, Rollout, Score, Scorer

Reward = Callable[[Prompt, str], Any]
SOLVED_FROM = 0.5


def load_scorer(name: str) -> Scorer:
    """The scorer of a built-in verifier (of `VERIFIERS`) or of `pkg.module:function`.

    Raises:
        UserError: there is no such verifier, module or function, or it cannot be imported or called.
    """
    if ":" not in name:
        if name in VERIFIERS:
            return _scorer(name, VERIFIERS[name])
        hint = nearest(name, VERIFIERS)
        raise UserError(
            f"reward: no built-in verifier '{name}'{hint}; known are {', '.join(sorted(VERIFIERS))}; "
            "your own function is named like my_module:reward"
        )
    return _scorer(name, load_dotted(name, "reward"))


def _scorer(name: str, reward: Reward) -> Scorer:
    def score(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        return [_truncation(rollout, _call(name, reward, prompt, rollout.text)) for rollout in completions]

    return score


def _truncation(rollout: Rollout, score: Score) -> Score:
    """A truncated rollout is unsolved; only a reward that was nothing but the outcome falls with it."""
    if not rollout.truncated:
        return score
    reward = 0.0 if score.outcome and score.reward == 1.0 else score.reward
    return replace(score, reward=reward, outcome=False, reason="truncated")


def _call(name: str, reward: Reward, prompt: Prompt, completion: str) -> Score:
    try:
        value = reward(prompt, completion)
        value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
        if isinstance(value, Score) and _finite(value.reward, *value.breakdown.values()):
            parts = {key: float(part) for key, part in value.breakdown.items()}
            return Score(float(value.reward), bool(value.outcome), str(value.reason), parts)
    except (UserError, JudgeError):
        raise
    except Exception as error:
        raise JudgeError(f"reward {name} failed on prompt {prompt.prompt_id}: {describe(error)}") from error
    if isinstance(value, bool):
        return Score(float(value), value)
    if isinstance(value, int | float) and _finite(value):
        return Score(float(value), value >= SOLVED_FROM)
    raise JudgeError(
        f"reward {name} returned {value!r:.80} for prompt {prompt.prompt_id}; "
        "expected a finite number, a bool or a Score of finite numbers"
    )


def _finite(*values: Any) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # no number, or too large a one
        return False
