"""The scorer of a run: what its settings name under `reward`, or its rubric."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray.exceptions import ActorUnavailableError

from judges.endpoint import Endpoint, Grade, check_address, endpoint_grades
from judges.llm import MET, PLACES, Failure, LLMJudge
from judges.rubric import MET_TEMPLATE, TEMPLATE, Criterion, Grades, Rubric, graded
from judges.scorer import load_scorer
from judges.verifiers import limit_programs
from posttrain.cluster import answer, readable
from posttrain.config import Config, CriterionConfig, resolve_model
from posttrain.templates import read_template
from rollouts.errors import EngineError, JudgeError
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Message, Prompt, Rollout, Score, Scorer

JUDGED_AT_ONCE = 32
"""Groups that are judged at once where a model is asked, which takes time but no work."""


def scorer_of(config: Config, graders: Sequence[Any] = ()) -> Scorer:
    """The scorer.

    Args:
        config: of the run.
        graders: the engines of `rubric.model`, where it has one; without them nothing can be graded.

    Raises:
        UserError: no such verifier, function or template.
    """
    limit_programs(**config.sandbox.model_dump())
    if config.rubric is None:
        return load_scorer(config.reward)
    rubric = config.rubric
    criteria = [
        Criterion(name, criterion.weight, _scorer(config, name, criterion, graders))
        for name, criterion in rubric.criteria.items()
    ]
    found = Rubric(criteria, rubric.outcome, rubric.threshold)
    if rubric.capabilities is None:
        return found
    capabilities, others = set(rubric.capabilities), _one_at_a_time(load_scorer(config.reward))

    def score(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        return (found if prompt.capability in capabilities else others)(prompt, completions)

    return score


def judged_at_once(config: Config) -> int:
    """How many groups may be scored at once: more than one where scoring waits for a model's answers."""
    return JUDGED_AT_ONCE if config.rubric is not None and config.rubric.asks else 1


def _scorer(config: Config, name: str, criterion: CriterionConfig, graders: Sequence[Any]) -> Scorer:
    rubric = config.rubric
    assert rubric is not None
    if criterion.judge is None:
        assert criterion.reward is not None
        return _one_at_a_time(load_scorer(criterion.reward))
    template = TEMPLATE if rubric.endpoint else MET_TEMPLATE
    if criterion.template is not None:
        template = read_template(f"rubric.criteria.{name}.template", criterion.template, PLACES)
    template = template.replace("{criterion}", criterion.judge)
    if rubric.endpoint is not None:
        check_address(rubric.endpoint.base_url)
        limit = config.generators.request_timeout
        grades = endpoint_grades(Endpoint(**rubric.endpoint.model_dump()), template, limit)
    else:
        grades = _engine_grades(config, template, graders)
    return graded(grades, criterion.pass_grade, rubric.length_penalty)


def _engine_grades(config: Config, template: str, graders: Sequence[Any]) -> Grades:
    """Grades by engines in turn; the grade is the probability of yes."""
    rubric, limits, turns = config.rubric, config.generators, itertools.count()
    assert rubric is not None
    assert rubric.model is not None
    model = resolve_model(rubric.model)
    renderer, longest = Renderer(model), readable(model, rubric.max_prompt_tokens)

    async def generate(engine: Any, requests: Sequence[Request]) -> list[list[Rollout]]:
        await _started(engine, limits.start_timeout)
        found = answer(engine.generate_all.remote(requests), limits.request_timeout, "the grading model")
        result: list[list[Rollout]] = await found
        return result

    judges = [
        LLMJudge(model, renderer, partial(generate, engine), template, longest, MET, whole=True) for engine in graders
    ]

    def grades(conversations: Sequence[Sequence[Message]]) -> list[Grade]:
        judge = judges[next(turns) % len(judges)]
        try:
            found = asyncio.run(judge.judge(conversations))
        except EngineError as error:
            raise JudgeError(f"rubric.model={rubric.model}: {error}") from error
        return [verdict if isinstance(verdict, Failure) else verdict.score for verdict in found]

    return grades


async def _started(engine: Any, limit: float) -> None:
    """Waits until an engine answers that has just been started, or died and is started again by Ray."""
    end = time.monotonic() + limit
    while True:
        try:
            return await answer(engine.ready.remote(), max(1.0, end - time.monotonic()), "the grading model to start")
        except EngineError as error:
            if not isinstance(error.__cause__, ActorUnavailableError) or time.monotonic() > end:
                raise
        await asyncio.sleep(1)


def _one_at_a_time(scorer: Scorer) -> Scorer:
    """A user's function need not be safe to be called by several threads."""
    lock = threading.Lock()

    def score(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        with lock:
            return scorer(prompt, completions)

    return score
