from pathlib import Path

import pytest

from judges.scorer import load_scorer
from rollouts.errors import DataError, JudgeError, UserError
from rollouts.types import Prompt, Rollout, Score

PROMPT = Prompt("p1", ({"role": "user", "content": "47+38"},), answer="85", answer_format=("<ans>", "</ans>"))

REWARDS = """
import numpy as np
from rollouts.types import Score
def short(prompt, completion): return 1.0 / len(completion)
def right(prompt, completion): return prompt.answer in completion
def scored(prompt, completion): return Score(2.0, True, "fine", {"style": 0.5})
def numpy_float(prompt, completion): return np.float32(0.75)
def numpy_bool(prompt, completion): return np.bool_(True)
def numpy_score(prompt, completion): return Score(np.float32(0.75), np.bool_(True), "", {"style": np.float64(0.5)})
def numpy_row(prompt, completion): return np.zeros(2)
def broken(prompt, completion): return {}["key"]
def forgetful(prompt, completion): pass
def infinite(prompt, completion): return float("inf")
def infinite_score(prompt, completion): return Score(float("nan"), False)
def infinite_part(prompt, completion): return Score(1.0, False, "", {"style": float("nan")})
def worded_score(prompt, completion): return Score("good", True)
async def later(prompt, completion): return 1.0
LIMIT = 3
"""


@pytest.fixture(autouse=True)
def users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_rewards.py").write_text(REWARDS)
    (tmp_path / "users_broken.py").write_text("import a_library_that_is_missing")
    (tmp_path / "users_worse.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    return tmp_path


def rollout(text: str, finish: str = "stop") -> Rollout:
    return Rollout([], [], [], [], finish, text)


def one(name: str, text: str = "85", finish: str = "stop") -> Score:
    (score,) = load_scorer(name)(PROMPT, [rollout(text, finish)])
    return score


def test_a_built_in_verifier_scores_each_completion_in_order() -> None:
    scores = load_scorer("auto")(PROMPT, [rollout("<ans>85</ans>"), rollout("<ans>84</ans>"), rollout("85")])
    assert [score.reward for score in scores] == [1.0, 0.0, 0.0]
    assert [score.reason for score in scores] == ["", "wrong answer", "no '<ans>'"]


def test_a_truncated_rollout_is_unsolved() -> None:
    right = {"format": 1.0, "correct": 1.0}
    assert one("math", "<ans>85</ans>", "length") == Score(0.0, False, "truncated", right)
    assert one("users_rewards:right", finish="length") == Score(0.0, False, "truncated")
    assert one("users_rewards:numpy_float", finish="length") == Score(0.75, False, "truncated")
    assert one("users_rewards:scored", finish="length") == Score(2.0, False, "truncated", {"style": 0.5})


def test_a_users_reward_may_return_a_float_a_bool_or_a_score() -> None:
    assert one("users_rewards:short", "ab") == Score(0.5, True)
    assert one("users_rewards:short", "abcd") == Score(0.25, False)
    assert one("users_rewards:right", "is 85") == Score(1.0, True)
    assert one("users_rewards:right", "is 86") == Score(0.0, False)
    assert one("users_rewards:scored") == Score(2.0, True, "fine", {"style": 0.5})
    assert one("users_rewards:numpy_float") == Score(0.75, True)
    assert one("users_rewards:numpy_bool") == Score(1.0, True)
    score = one("users_rewards:numpy_score")
    assert score == Score(0.75, True, "", {"style": 0.5})
    assert [type(value) for value in (score.reward, score.outcome, score.breakdown["style"])] == [float, bool, float]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mth",
            r"^reward: no built-in verifier 'mth'; did you mean 'math'\?; known are auto, choice, code, exact, ",
        ),
        ("users_rewards.short", "^reward: no built-in verifier 'users_rewards.short'; known are"),
        ("users_rewards:shor", r"'users_rewards:shor': module users_rewards has no 'shor'; did you mean 'short'\?$"),
        ("users_reward:short", r"no module 'users_reward'; did you mean 'users_rewards'\? \(searched from "),
        ("nowhere_at_all:short", r"no module 'nowhere_at_all' \(searched from "),
        ("users_rewards.more:short", r"no module 'users_rewards.more' \(searched from "),
        ("judges.verifier:short", r"no module 'judges.verifier'; did you mean 'verifiers'\?"),
        ("users_broken:short", "importing users_broken failed: no module 'a_library_that_is_missing'$"),
        ("users_worse:f", "importing users_worse failed: SyntaxError: "),
        ("users_rewards:LIMIT", "is of type int, not a function"),
        ("users_rewards:later", "is async; it must be a plain function"),
        ("users_rewards:", "is not of the form"),
        ("users_rewards.py:short", "no module 'users_rewards.py'"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_the_users_error_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_scorer(name)
    assert str(caught.value).startswith("reward: ")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_rewards:broken", "^reward users_rewards:broken failed on prompt p1: KeyError: 'key'$"),
        ("users_rewards:numpy_row", "^reward users_rewards:numpy_row failed on prompt p1: ValueError: "),
        ("users_rewards:forgetful", "^reward users_rewards:forgetful returned None for prompt p1; expected a finite"),
        ("users_rewards:infinite", "returned inf for prompt p1"),
        ("users_rewards:infinite_score", r"returned Score\(reward=nan"),
        ("users_rewards:infinite_part", r"returned Score\(reward=1.0.* a Score of finite numbers$"),
        ("users_rewards:worded_score", r"returned Score\(reward='good'.* a Score of finite numbers$"),
    ],
)
def test_a_reward_that_fails_is_a_judge_error_and_no_score(name: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        one(name)


def test_what_the_data_lacks_stays_the_users_error() -> None:
    with pytest.raises(DataError, match="prompt p1: no 'tests'"):
        one("code")
