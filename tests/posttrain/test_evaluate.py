"""The estimators against brute force, and a report of made-up engines value by value."""

import itertools
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from judges.corner_cases import KINDS
from posttrain.config import load_config
from posttrain.evaluate import change, evaluate, mean_and_interval, pass_at_k, score_completions
from rollouts.errors import ConfigError, JudgeError
from rollouts.generator import Request
from rollouts.types import Prompt, Rollout, Score


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_solved_one(samples: int) -> None:
    for solved, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        outcomes = [index < solved for index in range(samples)]
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(samples, solved, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased() -> None:
    rng, rate, k = random.Random(0), 0.3, 3
    draws = [pass_at_k(8, sum(rng.random() < rate for _ in range(8)), k) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(1 - (1 - rate) ** k, abs=0.01)


def test_interval() -> None:
    mean, (low, high) = mean_and_interval([0.0, 1.0, 1.0, 0.0])
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 1.96 * math.sqrt(1 / 3 / 4), 0.5 + 1.96 * math.sqrt(1 / 3 / 4)))
    assert mean_and_interval([0.25]) == (0.25, (0.25, 0.25))
    rng = random.Random(1)  # it covers the true mean in 95 of 100 cases
    covered = 0
    for _ in range(1000):
        _, (low, high) = mean_and_interval([float(rng.random() < 0.4) for _ in range(100)])
        covered += low <= 0.4 <= high
    assert 920 <= covered <= 975


class Words:
    """A renderer whose tokens are word lengths."""

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return tuple(map(len, messages[-1]["content"].split()))


class Engines:
    """A pool that says, for each prompt, what its first token and the temperature decide."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def generate(self, requests: Sequence[Request], actors: Any) -> list[list[Rollout]]:
        self.asked += requests
        return [[self._rollout(request, index) for index in range(request.n)] for request in requests]

    def _rollout(self, request: Request, index: int) -> Rollout:
        kind, temperature = request.prompt_token_ids[0], request.sampling.temperature
        # 1: always right; 2: the first two of four, and greedily; 3: never, run on at temperature 1
        right = kind == 1 or (kind == 2 and index < 2 and temperature != 0.5)
        run_on = kind == 3 and temperature == 1
        text = "<a>yes</a>" if right else "<a>no</a>"
        return Rollout([9] * 4, [True] * 4, [0.0] * 4, [], "length" if run_on else "stop", text)


def judge(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
    return [Score(float("yes" in rollout.text), "yes" in rollout.text) for rollout in rollouts]


def prompt(text: str, **fields: Any) -> Prompt:
    return Prompt(text, ({"role": "user", "content": text},), answer_format=("<a>", "</a>"), **fields)


async def test_a_report() -> None:
    prompts = [
        prompt("a", capability="math", difficulty=1, instruction="i", instruction_trained=True),
        prompt("bb", capability="math", difficulty=2, instruction_trained=False),
        prompt("ccc", capability="code", difficulty=2),
    ]
    engines, done = Engines(), []
    config = load_config("tiny", ["eval.samples=4", "eval.pass_k=[1,2,4]", "eval.temperatures=[0.0,0.5]", "seed=9"])
    report = await evaluate(engines, Words(), prompts, judge, config, advance=done.append)
    assert (report.prompts, report.samples) == (3, 4)
    assert report.pass_at_1 == pytest.approx((1 + 0.5 + 0) / 3)
    assert report.pass_at_k == pytest.approx({2: (1 + 5 / 6 + 0) / 3, 4: 2 / 3})
    assert report.by_temperature == pytest.approx({"0": 2 / 3, "0.5": 1 / 3, "1": 0.5})
    assert report.greedy == report.best == pytest.approx(2 / 3)
    assert report.by_capability == {"code": 0.0, "math": 0.75}
    assert report.by_difficulty == {"1": 1.0, "2": 0.25}
    assert report.by_instruction == {"i": 1.0}
    assert report.by_instruction_use == {"held_out": 0.5, "trained": 1.0}
    assert report.corner_cases["run_on"] == report.corner_cases["any"] == pytest.approx(1 / 3)
    assert report.corner_case_counts == {"format": 0, "run_on": 4, "empty": 0, "repetition": 0, "refusal": 0, "any": 4}
    assert report.mean_tokens == 4
    shares = [{key: value for key, value in each.items() if value} for each in report.by_prompt.values()]
    assert shares == [{"pass@1": 1, "reward": 1}, {"pass@1": 0.5, "reward": 0.5}, {"corner_cases": 1, "run_on": 1}]
    values = report.as_json()
    assert list(values)[:3] == ["pass@1", "pass@2", "pass@4"]
    assert values["ci95"] == report.ci95
    assert sorted(done) == [3, 3, 12]


def test_a_change_is_of_pairs() -> None:
    rng = random.Random(3)
    rest = {"corner_cases": 0.25, "reward": 0.5, **dict.fromkeys(KINDS, 0.0)}
    before = {str(index): {"pass@1": float(rng.random() < 0.5), **rest} for index in range(100)}
    rest |= {"corner_cases": 0.0, "reward": 0.75, "run_on": 0.5}
    after = {name: {"pass@1": was["pass@1"] * 0.9 + 0.05, **rest} for name, was in before.items()}
    after["another"] = {"pass@1": 1.0, **rest}
    found = change({"by_prompt": before}, {"by_prompt": after})
    differences = [0.05 - 0.1 * was["pass@1"] for was in before.values()]
    mean, interval = mean_and_interval(differences)
    assert found["pass@1"]["mean"] == pytest.approx(mean)
    assert found["pass@1"]["ci95"] == pytest.approx(interval)
    assert interval[1] - interval[0] < 0.03  # unpaired it would be 0.27
    assert (found["reward"]["mean"], found["run_on"]["mean"], found["empty"]["mean"]) == (0.25, 0.5, 0.0)
    assert found["corner_cases"] == {"mean": -0.25, "ci95": (-0.25, -0.25)}


async def test_what_cannot_be_judged_is_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(question: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        if question.prompt_id == "bb":
            raise JudgeError("timed out")
        return [Score(0.5, True, "", {"polite": 0.25}) for _ in rollouts]

    config = load_config("tiny", ["eval.samples=2", "eval.pass_k=[1]", "eval.temperatures=[1.0]"])
    report = await evaluate(Engines(), Words(), [prompt("a"), prompt("bb"), prompt("ccc")], fails, config)
    assert list(report.by_prompt) == ["a", "ccc"]
    assert (report.prompts, report.pass_at_1, report.by_prompt["a"]["reward/polite"]) == (2, 1.0, 0.25)
    assert "1 of 3 prompts are left out, not judged; the last: timed out" in capsys.readouterr().err
    with pytest.raises(JudgeError, match="timed out"):
        await evaluate(Engines(), Words(), [prompt("bb")], fails, config)


ROLLOUT = Rollout([5], [True], [-1.0], [], "stop", "85")


def test_a_reward_that_hangs_is_one_line_after_its_limit() -> None:
    """In a process of its own, which the thread that hangs must not keep from ending."""
    script = """
import time
from posttrain.evaluate import score_completions
from rollouts.types import Prompt, Rollout
from rollouts.errors import UserError
rollouts = [Rollout([5], [True], [-1.0], [], "stop", "85")]
try:
    score_completions(lambda *_: time.sleep(600), [Prompt("p7", ())], [rollouts], limit=0.2)
except UserError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == ("waited 0 s (generators.request_timeout) for prompt p7 to be judged; the reward may hang\n")


def test_what_an_environment_failed_on_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def scorer(question: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(1.0, True) for _ in rollouts]

    assert score_completions(scorer, [prompt("a"), prompt("bb")], [[], [ROLLOUT]]) == [1]
    assert (
        "1 of 2 prompts are left out, not judged; the last: environment failed on prompt a" in capsys.readouterr().err
    )


def test_a_wrong_reward_ends_scoring_at_once() -> None:
    asked = []

    def wrong(question: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        asked.append(question)
        time.sleep(0.1)
        raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        score_completions(wrong, [prompt("a")] * 200, [[ROLLOUT]] * 200)
    assert len(asked) < 100


async def test_what_is_asked_of_the_engines() -> None:
    engines = Engines()
    config = load_config("tiny", ["eval.samples=2", "eval.pass_k=[1]", "eval.samples_other=3", "eval.max_tokens=7"])
    await evaluate(engines, Words(), [prompt("a"), prompt("bb")], judge, config, temperatures=(0.5, 0.0))
    assert [(request.sampling.temperature, request.n) for request in engines.asked] == [
        (0.0, 1), (0.0, 1), (0.5, 3), (0.5, 3), (1.0, 2), (1.0, 2),
    ]  # fmt: skip
    assert {request.sampling.max_tokens for request in engines.asked} == {7}
    seeds = [request.seed for request in engines.asked]
    assert seeds[0] != seeds[1]  # prompts differ, and a second evaluation draws the same
    assert seeds[:2] == seeds[2:4] == seeds[4:]
