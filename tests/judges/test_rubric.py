"""A reward of several criteria: the outcome apart from the reward, grades by a model, and what its failure is."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from judges.endpoint import Endpoint, endpoint_grades
from judges.rubric import TEMPLATE, Criterion, Rubric, graded
from judges.scorer import load_scorer
from posttrain.config import Config
from posttrain.reward import judged_at_once, scorer_of
from rollouts.errors import ConfigError, JudgeError
from rollouts.types import Prompt, Rollout, Score
from tests.judges.server import Server, completion, serving

PROMPT = Prompt("p", ({"role": "user", "content": "47+38"},), answer="85")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def rollout(text: str, length: int = 4, finish: str = "stop") -> Rollout:
    return Rollout([1] * length, [True] * length, [-1.0] * length, [(0, length, 0)], finish, text)


def fixed(*rewards: float) -> Criterion:
    def score(prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        return [Score(reward, reward >= 0.5, "" if reward >= 0.5 else "low") for reward in rewards]

    return Criterion(f"fixed{rewards[0]:g}", 3.0, score)


def test_the_outcome_is_one_criterions_and_the_reward_the_mean_of_all() -> None:
    correct, style = Criterion("correct", 1.0, load_scorer("math")), fixed(0.2, 1.0)
    scores = Rubric([correct, style], "correct", 0.5)(PROMPT, [rollout("85"), rollout("84")])
    assert [(score.reward, score.outcome) for score in scores] == [(pytest.approx(0.4), True), (0.75, False)]
    assert scores[0].breakdown == {"correct": 1.0, "fixed0.2": 0.2}
    assert scores[1].reason == "correct: wrong answer"


def test_without_one_the_reward_decides_and_a_truncated_rollout_is_unsolved() -> None:
    rubric = Rubric([fixed(0.6, 0.6, 0.4)], None, 0.5)
    scores = rubric(PROMPT, [rollout("a"), rollout("b", finish="length"), rollout("c")])
    assert [score.outcome for score in scores] == [True, False, False]
    assert scores[2].reason == "fixed0.6: low"


def test_a_model_grades_and_length_beyond_the_groups_costs(server: Server) -> None:
    server.scripts = {"polite": lambda text: (200, completion('{"grade": 9}' if "please" in text else '{"grade": 2}'))}
    scorer = graded(
        endpoint_grades(Endpoint(server.url, "m"), TEMPLATE.replace("{criterion}", "It is polite."), 5.0), 0.7, 0.1
    )
    group = [rollout("please", 10), rollout("no", 10), rollout("please " * 4, 40), rollout("please", 5)]
    scores = scorer(PROMPT, group)
    assert [score.reward for score in scores] == pytest.approx([0.9, 0.2, 0.7, 0.9])
    assert [score.outcome for score in scores] == [True, False, True, True]
    assert scores[1].reason == "grade 0.20"
    asked = server.seen[0]["messages"][0]["content"]
    assert "It is polite." in asked
    assert "47+38" in asked


def test_a_models_failure_is_no_score(server: Server) -> None:
    server.scripts = {"bad": [(500, "{}")], "good": [(200, completion("5"))]}
    scorer = graded(endpoint_grades(Endpoint(server.url, "m", retries=0), "{response}", 5.0), 0.5, 0.0)
    with pytest.raises(JudgeError, match="1 of 2 answers could not be graded: InternalServerError"):
        Rubric([Criterion("graded", 1.0, scorer)], None, 0.5)(PROMPT, [rollout("good"), rollout("bad")])


def test_a_model_that_hangs_is_no_score_and_not_waited_for(server: Server) -> None:
    server.scripts = {"slow": ["hang"], "good": [(200, completion("5"))]}
    endpoint_grades(Endpoint(server.url, "m"), "{response}", 60)(
        [[{"role": "assistant", "content": "good"}]]
    )  # imports
    grades = endpoint_grades(Endpoint(server.url, "m", concurrency=1), "{response}", 0.5)
    found = grades([[{"role": "assistant", "content": word}] for word in ("good", "slow", "slow")])
    assert found[0] == 0.5
    assert [str(getattr(each, "reason", "")) for each in found[1:]] == [
        "no answer within 0.5 s, waiting for a turn included"
    ] * 2


def test_an_endpoint_is_asked_so_much_at_once_by_all_together(server: Server) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def reply(_: str) -> tuple[int, str]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return 200, completion("5")

    def waited() -> None:
        nonlocal under_way
        time.sleep(0.02)
        with lock:
            under_way -= 1

    server.scripts, server.before_reply = {"": reply}, waited
    endpoint = Endpoint(server.url, "m", concurrency=2)
    both = [endpoint_grades(endpoint, f"{name} {{response}}", 30.0) for name in ("kind", "short")]
    asked = [[{"role": "assistant", "content": "yes"}]] * 4
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(grades, asked) for grades in both * 2]]
    assert found == [[0.5] * 4] * 4
    assert most == 2


def test_a_grade_that_is_not_finite_is_no_score() -> None:
    scorer = graded(lambda said: [0.5, math.nan], 0.5, 0.1)
    with pytest.raises(JudgeError, match="1 of 2 answers could not be graded: the grade is nan"):
        scorer(PROMPT, [rollout("a"), rollout("b")])


def test_a_configured_rubric(server: Server) -> None:
    server.scripts = {"": [(200, completion("10"))]}
    config = Config.model_validate({
        "model": "tiny:base",
        "rubric": {
            "criteria": {"correct": {"reward": "math", "weight": 3.0}, "brief": {"judge": "It is brief."}},
            "outcome": "correct",
            "endpoint": {"base_url": server.url, "model": "m"},
        },
    })  # fmt: skip
    assert judged_at_once(config) > 1
    right, wrong = scorer_of(config)(PROMPT, [rollout("85"), rollout("1")])
    assert (right.reward, right.outcome, wrong.reward, wrong.outcome) == (1.0, True, 0.25, False)
    missing = config.model_dump()
    missing["rubric"]["criteria"]["brief"]["template"] = "/nowhere.txt"
    with pytest.raises(ConfigError, match=r"rubric.criteria.brief.template: /nowhere.txt: No such file"):
        scorer_of(Config.model_validate(missing))


def test_other_capabilities_keep_the_reward() -> None:
    rubric = {"criteria": {"long": {"reward": "format"}}, "capabilities": ["chat"]}
    config = Config.model_validate({"model": "tiny:base", "reward": "math", "rubric": rubric})
    assert judged_at_once(config) == 1
    chat = replace(PROMPT, capability="chat", answer_format=("<", ">"))
    assert [score.outcome for score in scorer_of(config)(PROMPT, [rollout("85"), rollout("<85>")])] == [True, True]
    assert [score.outcome for score in scorer_of(config)(chat, [rollout("85"), rollout("<85>")])] == [False, True]


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        ({"criteria": {}}, "at least 1 item"),
        ({"criteria": {"a": {}}}, "either `reward` or `judge`"),
        ({"criteria": {"a": {"reward": "math", "judge": "x"}}}, "either `reward` or `judge`"),
        ({"criteria": {"a": {"judge": "x"}}}, "a criterion with `judge` needs it, or `model`"),
        (
            {"criteria": {"a": {"judge": "x"}}, "model": "m", "endpoint": {"base_url": "http://a", "model": "m"}},
            "either `endpoint` or `model`",
        ),
        ({"criteria": {"a": {"reward": "math"}}, "outcome": "b"}, "expected one of the criteria: a"),
    ],
)
def test_a_wrong_rubric(rubric: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"model": "tiny:base", "rubric": rubric})
