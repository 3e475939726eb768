"""The scorer of a run: what its settings name under `reward`, or its rubric."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from judges.endpoint import Endpoint, check_address
from judges.rubric import TEMPLATE, Criterion, Rubric, graded
from judges.scorer import load_scorer
from posttrain.config import Config, CriterionConfig, RubricConfig
from rollouts.errors import ConfigError
from rollouts.types import Prompt, Rollout, Score, Scorer


def scorer_of(config: Config) -> Scorer:
    """The scorer.

    Raises:
        UserError: no such verifier, function or template.
    """
    if config.rubric is None:
        return load_scorer(config.reward)
    rubric = config.rubric
    criteria = [
        Criterion(name, criterion.weight, _scorer(name, criterion, rubric))
        for name, criterion in rubric.criteria.items()
    ]
    return Rubric(criteria, rubric.outcome, rubric.threshold)


def asks_a_model(config: Config) -> bool:
    """Whether scoring waits for a model's answers."""
    return config.rubric is not None and any(each.judge is not None for each in config.rubric.criteria.values())


def _scorer(name: str, criterion: CriterionConfig, rubric: RubricConfig) -> Scorer:
    if criterion.judge is None:
        assert criterion.reward is not None
        return _one_at_a_time(load_scorer(criterion.reward))
    assert rubric.endpoint is not None
    check_address(rubric.endpoint.base_url)
    template = TEMPLATE
    if criterion.template is not None:
        try:
            template = Path(criterion.template).expanduser().read_text().rstrip("\n")
        except OSError as error:
            key = f"rubric.criteria.{name}.template"
            raise ConfigError(f"{key}: {criterion.template}: {error.strerror or error}") from None
    endpoint = Endpoint(**rubric.endpoint.model_dump())
    return graded(
        endpoint, template.replace("{criterion}", criterion.judge), criterion.pass_grade, rubric.length_penalty
    )


def _one_at_a_time(scorer: Scorer) -> Scorer:
    """A user's function need not be safe to be called by several threads."""
    lock = threading.Lock()

    def score(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        with lock:
            return scorer(prompt, completions)

    return score
