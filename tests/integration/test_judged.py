"""Pruning by a judge behind an endpoint, and rollouts that a judge on an engine of the run grades."""

import contextlib
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cluster import Cluster
from posttrain.config import load_config, resolve_model
from posttrain.placement import ROLES
from posttrain.prune import prune
from posttrain.reward import scorer_of
from posttrain.rundir import RunDir
from posttrain.slots import Draw
from posttrain.tiny.chat import MANNERS, prompts
from posttrain.verifier import Verifier
from posttrain.workers import JUDGE_TRIES
from rollouts.errors import JudgeError
from rollouts.types import Prompt, Rollout, RolloutGroup
from tests.integration.commands import Running, posttrain
from tests.integration.reference import logprobs_of
from tests.judges.server import completion, serving

LABELS = [json.dumps({"label": label}) for label in ("easy", "medium", "hard")]


def test_a_judge_behind_an_endpoint_prunes_and_is_asked_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        server.scripts = {"### Task": lambda text: (200, completion(LABELS[len(text) % 3]))}
        words = [
            "data.demonstrations.limit=60", f"judge.endpoint={{base_url: '{server.url}', model: m}}",
            "judge.template=null",
        ]  # fmt: skip
        for more in ([], ["prune.method=longest"]):
            config = load_config("tiny", [*words, *more])
            prune(config, RunDir(tmp_path / "run", config))
            assert len(server.seen) == 60
    assert "60 verdicts are known already" in capsys.readouterr().err
    rows = read_table(tmp_path / "run/sft/verdicts.parquet").to_pylist()
    assert {row["label"] for row in rows} == {"easy", "medium", "hard"}
    assert "longest" in next(row["reason"] for row in rows if row["kept"])


def test_pruning_that_was_killed_asks_about_no_row_twice_but_those_under_way(tmp_path: Path) -> None:
    def slow(text: str) -> tuple[int, str]:
        time.sleep(0.03)  # one at a time
        return 200, completion(LABELS[0])

    words = ["prune", "tiny", "--run", "run", "data.demonstrations.limit=200", "judge.template=null"]
    with serving() as server:
        server.scripts = {"### Task": slow}
        words.append(f"judge.endpoint={{base_url: '{server.url}', model: m, concurrency: 8}}")
        running = Running(*words, cwd=tmp_path)
        try:
            while len(server.seen) < 60:
                time.sleep(0.05)
                assert running.process.poll() is None, running.err
            running.process.kill()
            running.process.wait(60)
        finally:
            running.end()
        assert len(server.seen) < 200
        assert not (tmp_path / "run/sft/kept.parquet").exists()
        again = posttrain(*words, cwd=tmp_path)
        assert len(server.seen) <= 208
    assert "verdicts are known already" in again.err
    assert read_table(tmp_path / "run/sft/verdicts.parquet").num_rows == 200


def test_a_judge_that_is_not_there_ends_pruning_with_one_line(tmp_path: Path) -> None:
    words = ["data.demonstrations.limit=4", "judge.endpoint={base_url: 'http://127.0.0.1:9/v1', model: m, retries: 0}"]
    ended = posttrain("prune", "tiny", "--run", str(tmp_path / "run"), *words, cwd=tmp_path, code=2)
    assert "4 of 4 demonstrations could not be judged by m" in ended.err
    assert not (tmp_path / "run/sft/kept.parquet").exists()


def test_a_judge_on_an_engine_of_the_run_grades_the_chat_alone_and_comes_back_when_it_dies() -> None:
    """Through the verifier. A grade is the probability of yes by the judge's own weights, recomputed without vLLM."""
    config = load_config("tiny-chat", ["rubric.length_penalty=0"])
    chat, other = next(map(as_prompt, prompts())), Prompt("o", ({"role": "user", "content": "1+1"},), "math", "2")
    asked = chat.messages[-1]["content"]
    texts = [
        "Arr!",
        f"{asked} {asked}",
        *(manner.write(random.Random(0), "cup", chat.answer or "") for manner in MANNERS),
    ]
    rollouts = [Rollout([7], [True], [-1.0], [(0, 1, 0)], "stop", text) for text in texts]
    with Cluster(config, ROLES["eval"]) as cluster:
        verifier = cluster.actor(Verifier, partial(scorer_of, config, cluster.graders()), sys.path, max_concurrency=4)

        def judged(prompt: Prompt) -> RolloutGroup:
            _, group = ray.get(verifier.judge.remote(Draw(0, 0, prompt, 0), [7], rollouts))
            return group

        first = judged(chat)
        assert not any("manner" in rollout.breakdown for rollout in judged(other).rollouts)
        (grader,) = cluster.graders()
        ray.kill(grader, no_restart=False)
        for _ in range(JUDGE_TRIES):  # what was under way when it died is a failure
            with contextlib.suppress(JudgeError):
                assert judged(chat).rollouts == first.rollouts
                break
        else:
            raise AssertionError("the judge did not come back")
    expected = yes(asked, texts)
    assert [rollout.breakdown["manner"] for rollout in first.rollouts] == pytest.approx(expected, abs=1e-3)
    assert max(expected) > 0.5 > min(expected)
    assert [rollout.breakdown["place"] for rollout in first.rollouts] == [0.0, 1.0] + [1.0] * len(MANNERS)
    assert [rollout.outcome for rollout in first.rollouts] == [rollout.reward >= 0.75 for rollout in first.rollouts]


def as_prompt(row: dict[str, Any]) -> Prompt:
    return Prompt("p", tuple(row["messages"]), row["capability"], row["answer"])


def yes(asked: str, texts: list[str]) -> list[float]:
    directory = resolve_model("tiny:chat-judge")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    judge = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    template = Path(directory, "template.txt").read_text().rstrip("\n")
    found = []
    for text in texts:
        user = {"role": "user", "content": template.replace("{prompt}", asked).replace("{response}", text)}
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=True)["input_ids"]
        logprobs = []
        for word in ("no", "yes"):
            turns = [user, {"role": "assistant", "content": word}]
            whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
            sequence = {"prompt_token_ids": prompt, "token_ids": whole[len(prompt) :]}
            with torch.no_grad():
                logprobs.append(logprobs_of(judge, sequence, 1.0).sum())
        found.append(torch.stack(logprobs).softmax(0)[1].item())
    return found
