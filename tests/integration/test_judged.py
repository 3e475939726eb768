"""RL whose reward a model behind an endpoint grades, and pruning by such a judge, with real engines."""

import contextlib
import json
import random
import re
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.audit import audit
from posttrain.cluster import Cluster
from posttrain.config import load_config, resolve_model
from posttrain.placement import ROLES
from posttrain.reward import scorer_of
from posttrain.slots import Draw
from posttrain.tiny.chat import MANNERS, prompts
from posttrain.verifier import Verifier
from posttrain.workers import JUDGE_TRIES
from rollouts.errors import JudgeError
from rollouts.types import Prompt, Rollout, RolloutGroup
from tests.integration.commands import SMALL, posttrain
from tests.integration.reference import logprobs_of
from tests.judges.server import Server, completion, serving

LABELS = [json.dumps({"label": label}) for label in ("easy", "medium", "hard")]


def grades(server: Server) -> None:
    """Scripts a model that likes odd numbers of letters, and fails on a third of the questions."""

    def grade(text: str) -> tuple[int, str]:
        question, _, rest = text.partition("### Answer\n")
        odd = len(rest.partition("\n\nReply")[0]) % 2
        failing = zlib.crc32(question.encode()) % 3 == 0
        return (500, "{}") if failing else (200, completion(json.dumps({"grade": 9 if odd else 3})))

    server.scripts = {"### Answer\n": grade}


def test_rl_is_graded_and_a_failure_of_the_judge_is_rejected_not_scored(tmp_path: Path) -> None:
    with serving() as server:
        grades(server)
        words = [
            "rl.steps=2", "rl.checkpoint_every=2", "rl.eval_every=0", "rl.selection=uniform", "rl.group_size=4",
            "rubric.criteria.correct={reward: auto}", "rubric.criteria.style={judge: 'It is odd.'}",
            "rubric.outcome=style", f"rubric.endpoint={{base_url: '{server.url}', model: m, retries: 0}}",
        ]  # fmt: skip
        posttrain("rl", "tiny", "--run", str(tmp_path / "run"), *SMALL, *words, cwd=tmp_path)
    rows = [row for shard in (tmp_path / "run/rl/rollouts").iterdir() for row in read_table(shard).to_pylist()]
    assert rows
    for row in rows:
        breakdown = json.loads(row["breakdown"])
        assert breakdown["style"] <= 0.9  # the length penalty only takes
        assert row["reward"] == (breakdown["correct"] + breakdown["style"]) / 2
    assert not audit(tmp_path / "run").problems
    found = posttrain("ledger", str(tmp_path / "run"), cwd=tmp_path)
    assert re.search(r"rejected.*judge", found.out), found.out


def test_a_judge_behind_an_endpoint_prunes_and_is_asked_nothing_twice(tmp_path: Path) -> None:
    with serving() as server:
        server.scripts = {"### Task": lambda text: (200, completion(LABELS[len(text) % 3]))}
        words = [
            "data.demonstrations.limit=60", f"judge.endpoint={{base_url: '{server.url}', model: m}}",
            "judge.template=null",
        ]  # fmt: skip
        posttrain("prune", "tiny", "--run", str(tmp_path / "run"), *words, cwd=tmp_path)
        assert len(server.seen) == 60
        again = posttrain("prune", "tiny", "--run", str(tmp_path / "run"), *words, "prune.method=longest", cwd=tmp_path)
        assert len(server.seen) == 60
    assert "60 verdicts are known already" in again.err
    rows = read_table(tmp_path / "run/sft/verdicts.parquet").to_pylist()
    assert {row["label"] for row in rows} == {"easy", "medium", "hard"}
    assert "longest" in next(row["reason"] for row in rows if row["kept"])


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
