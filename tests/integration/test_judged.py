"""RL whose reward a model behind an endpoint grades, and pruning by such a judge, with real engines."""

import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.audit import audit
from posttrain.config import resolve_model
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


def test_a_judge_on_an_engine_of_the_run_grades_the_chat_alone(tmp_path: Path) -> None:
    """What it says is the probability of yes under its own weights, recomputed without vLLM."""
    words = [
        "rl.steps=1", "rl.checkpoint_every=1", "rl.drift_every=0", "rl.prompts_per_step=4",
        "rl.quotas={chat: 2, math: 2}",
        "rl.selection=uniform", "rl.group_size=4", "rl.max_rejected_in_a_row=4", "rubric.length_penalty=0",
    ]  # fmt: skip
    posttrain("rl", "tiny-chat", "--run", str(tmp_path / "run"), *words, cwd=tmp_path)
    rows = [row for shard in (tmp_path / "run/rl/rollouts").iterdir() for row in read_table(shard).to_pylist()]
    chat = [row for row in rows if row["capability"] == "chat"]
    assert chat
    assert {json.dumps(json.loads(row["breakdown"])) for row in rows if row["capability"] == "math"} == {"{}"}
    directory = resolve_model("tiny:chat-judge")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    judge = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    template = Path(directory, "template.txt").read_text().rstrip("\n")
    for row in chat[:8]:
        asked = json.loads(row["messages"])[-1]["content"]
        user = {"role": "user", "content": template.replace("{prompt}", asked).replace("{response}", row["text"])}
        logprobs = []
        for word in ("no", "yes"):
            turns = [user, {"role": "assistant", "content": word}]
            prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
            sequence = {"prompt_token_ids": prompt, "token_ids": whole[len(prompt) :]}
            with torch.no_grad():
                logprobs.append(logprobs_of(judge, sequence, 1.0).sum())
        yes = torch.stack(logprobs).softmax(0)[1].item()
        assert json.loads(row["breakdown"])["manner"] == pytest.approx(yes, abs=1e-3)
        assert row["outcome"] == (row["reward"] >= 0.75 and row["finish_reason"] == "stop")
