"""Makes the scorer that the configuration names under `reward`: a built-in verifier, or the user's own function.

The user's function is

    def reward(prompt: Prompt, completion: str) -> float | bool | Score

and is named by its dotted path, `my_package.my_module:reward`; the current directory is importable. A bool is the
outcome, with a reward of 1.0 or 0.0; a number is the reward, and the outcome is whether it is at least 0.5; a `Score`
is taken as it is. Whatever the function says, a truncated rollout is unsolved.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from judges.verifiers import VERIFIERS
from rollouts.errors import JudgeError, UserError
from rollouts.types import Prompt, Rollout, Score, Scorer

Reward = Callable[[Prompt, str], Any]
SOLVED_FROM = 0.5


def load_scorer(name: str) -> Scorer:
    """The scorer of a built-in verifier (`exact`, `math`, `code`, `auto`) or of `pkg.module:function`.

    Raises:
        UserError: there is no such verifier, module or function, or it cannot be imported or called.
    """
    if ":" not in name:
        if name in VERIFIERS:
            return _scorer(name, VERIFIERS[name])
        hint = _nearest(name, VERIFIERS)
        raise UserError(
            f"reward: no built-in verifier '{name}'{hint}; known are {', '.join(sorted(VERIFIERS))}; "
            "your own function is named like my_module:reward"
        )
    return _scorer(name, _import(name))


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
    except (UserError, JudgeError):
        raise
    except Exception as error:
        raise JudgeError(f"reward {name} failed on prompt {prompt.prompt_id}: {_describe(error)}") from error
    if isinstance(value, Score):
        return value
    value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
    if isinstance(value, bool):
        return Score(float(value), value)
    if isinstance(value, int | float) and math.isfinite(value):
        return Score(float(value), value >= SOLVED_FROM)
    raise JudgeError(
        f"reward {name} returned {value!r:.80} for prompt {prompt.prompt_id}; "
        "expected a finite number, a bool or a Score"
    )


# ----------------------------------------------------------------------------------------------------- dotted paths


def _import(path: str) -> Reward:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"reward: '{path}' is not of the form my_package.my_module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = _import_module(path, module_name)
    function = getattr(module, attribute, None)
    if function is None:
        hint = _nearest(attribute, (key for key, value in vars(module).items() if callable(value)))
        raise UserError(f"reward: '{path}': module {module_name} has no '{attribute}'{hint}")
    if not callable(function):
        raise UserError(f"reward: '{path}' is of type {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"reward: '{path}' is async; it must be a plain function")
    return function


def _import_module(path: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(missing + "."):
            raise UserError(f"reward: '{path}': importing {module_name} failed: no module '{missing}'") from error
        parent, _, last = missing.rpartition(".")
        hint = _nearest(last, _modules_in(parent))
        raise UserError(f"reward: '{path}': no module '{missing}'{hint} (searched from {Path.cwd()})") from error
    except Exception as error:
        raise UserError(f"reward: '{path}': importing {module_name} failed: {_describe(error)}") from error


def _modules_in(parent: str) -> list[str]:
    """Names of the modules beside the missing one: in its package or, at top level, in the current directory."""
    paths = list(getattr(sys.modules[parent], "__path__", [])) if parent in sys.modules else [str(Path.cwd())]
    return [module.name for module in pkgutil.iter_modules(paths)]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
