"""One real run of all stages, looked at from all sides."""

import itertools
import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.parquet import read_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config import Config, config_hash, resolve_model
from posttrain.rundir import Manifest
from tests.integration.commands import posttrain
from tests.integration.conftest import Run

STAGES = ("sft", "rl", "dpo")
STEPS, PROMPTS, GROUP, BOUND = 3, 6, 4, 1


def shards(run: Run) -> list[dict[str, Any]]:
    return [row for path in sorted((run.path / "rl/rollouts").iterdir()) for row in read_table(path).to_pylist()]


def test_summary_has_every_number(run: Run) -> None:
    summary = run.json("summary.json")
    assert list(summary["stages"]) == ["base", *STAGES]
    for report in summary["stages"].values():
        assert (report["prompts"], report["samples"]) == (30, 2)
        low, high = report["ci95"]
        assert -0.2 < low <= report["pass@1"] <= high < 1.2
        assert 0 <= report["pass@1"] <= report["pass@2"] <= 1
        assert report["best"] == max(report["greedy"], report["pass@1"])
        assert list(report["by_temperature"]) == ["0", "1"]
        assert set(report["by_capability"]) == {"code", "math", "reasoning"}
        kinds = report["corner_cases"]
        assert set(kinds) == {"format", "run_on", "empty", "repetition", "refusal", "any"}
        assert max(kinds.values()) == kinds["any"] <= sum(kinds.values()) - kinds["any"]
        assert round(kinds["any"] * 60) == report["corner_case_counts"]["any"]
        assert 1 < report["mean_tokens"] <= 64
    for before, after in zip(["base", *STAGES], STAGES, strict=False):
        found = summary["stages"][after][f"change_from_{before}"]["pass@1"]
        difference = summary["stages"][after]["pass@1"] - summary["stages"][before]["pass@1"]
        assert found["mean"] == pytest.approx(difference)
        assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]
    assert summary["stages"]["base"]["pass@1"] > 0.05  # the committed base solves some
    sft = summary["sft"]
    assert sft["rows_in"] == 200
    assert 1 <= sft["rows_kept"] <= 100
    assert sft["dropped_share"] == pytest.approx(1 - sft["rows_kept"] / 200)
    rl = summary["rl"]
    assert (rl["steps"], rl["groups_trained"]) == (STEPS, STEPS * PROMPTS)
    assert 0 <= rl["max_staleness_seen"] <= BOUND
    assert rl["tokens_generated"] > 0
    assert 0 < rl["seconds"] < summary["seconds"]
    assert 0 < rl["generator_busy_share"] <= 1
    assert 0 < rl["trainer_busy_share"] <= 1
    assert summary["dpo"]["pairs"] == read_table(run.path / "dpo/pairs.parquet").num_rows > 0


def test_progress_is_shown(run: Run) -> None:
    said = run.ended.err
    for version in range(1, STEPS + 1):
        (line,) = [line for line in said.splitlines() if line.startswith(f"step {version:4d}  reward")]
        for word in ("solved", "staleness", "rejected", "tok/s", "entropy", "kl", "lr 1.0e-04"):
            assert word in line
    assert "held-out after step 0: " in said
    assert "held-out after step 2: " in said
    assert "Traceback" not in said


def test_every_checkpoint_is_complete(run: Run) -> None:
    settings = config_hash(Config.model_validate(run.json("config.json")))
    parents = {"sft": resolve_model("tiny:base")}
    for stage in STAGES:
        for path in run.checkpoints(stage):
            manifest = Manifest.read(path)  # compares every file's sha256
            assert path.name == f"step-{manifest.step:06d}"
            assert (manifest.stage, manifest.parent, manifest.config_hash) == (stage, parents[stage], settings)
            assert {"config.json", "model.safetensors", "tokenizer.json"} < set(manifest.files)
        parents = dict.fromkeys(STAGES, str(path))
    assert [path.name for path in run.checkpoints("rl")] == ["step-000001", "step-000002", "step-000003"]


def test_each_stage_changes_the_weights(run: Run) -> None:
    models = [resolve_model("tiny:base"), *(run.checkpoints(stage)[-1] for stage in STAGES)]
    weights = [
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).get_output_embeddings().weight
        for model in models
    ]
    for before, after in itertools.pairwise(weights):
        assert 1e-6 < (after - before).abs().max().item() < 0.1


def test_export_is_the_last_checkpoint(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.path / "export")
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": "47+38"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    logits = []
    for directory in (run.path / "export", run.checkpoints("dpo")[-1]):
        with torch.no_grad():
            logits.append(AutoModelForCausalLM.from_pretrained(directory)(tokens).logits)
    assert logits[0].shape[:2] == tokens.shape
    assert torch.equal(*logits)
    names = {path.name for path in (run.path / "export").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if "optim" in name or "state" in name or name.endswith((".bin", ".pt", ".pth"))]


def test_prune_writes_verdicts_and_what_was_kept_and_dropped(run: Run) -> None:
    verdicts, kept, dropped = (
        read_table(run.path / "sft" / f"{name}.parquet").to_pylist() for name in ("verdicts", "kept", "dropped")
    )
    assert [row for row in verdicts if row["kept"]] == kept
    assert [row for row in verdicts if not row["kept"]] == dropped
    judged = [row for row in verdicts if row["judge"]]
    assert {row["judge"] for row in judged} == {"tiny:judge"}
    assert all(row["reason"].startswith("near-duplicate: of ") for row in verdicts if not row["judge"])
    for row in judged:
        by_label = {label: row[f"p_{label}"] for label in ("easy", "medium", "hard")}
        assert sum(by_label.values()) == pytest.approx(1)
        assert row["label"] == max(by_label, key=by_label.__getitem__)
        assert row["score"] == pytest.approx(by_label["medium"] / 2 + by_label["hard"])
    assert len({row["label"] for row in judged}) == 3  # the judge tells them apart


def test_a_label_has_the_probability_that_the_judge_itself_gives_it(run: Run) -> None:
    """Recomputed without vLLM: the whole label with the end of the turn, under no mask."""
    directory = resolve_model("tiny:judge")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    judge = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    template = Path(directory, "template.txt").read_text().rstrip("\n")
    judged = [row for row in read_table(run.path / "sft/verdicts.parquet").to_pylist() if row["judge"]]
    for row in judged[:20]:
        _, asked, said = json.loads(row["messages"])
        text = template.replace("{prompt}", asked["content"]).replace("{response}", said["content"])
        user = {"role": "user", "content": text}
        logprobs = []
        for label in ("easy", "medium", "hard"):
            prompt, whole = (
                tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=True)["input_ids"]
                for turns, ask in (([user], True), ([user, {"role": "assistant", "content": label}], False))
            )
            logprobs.append(log_likelihood(judge, prompt, whole[len(prompt) :]).sum().item())
        expected = torch.tensor(logprobs).softmax(0).tolist()
        assert [row["p_easy"], row["p_medium"], row["p_hard"]] == pytest.approx(expected, abs=2e-3)


def log_likelihood(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probability of each token of a completion: [T]."""
    tokens = torch.tensor([prompt + completion])
    with torch.no_grad():
        logprobs = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, tokens[0, len(prompt) :, None])[:, 0]


def test_stored_log_probs_are_those_of_the_version_that_they_claim(run: Run) -> None:
    """The weights that the live engine sampled with were the checkpoint's, for each token of each rollout."""
    versions = [run.checkpoints("sft")[-1], *run.checkpoints("rl")]
    policies = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in versions]
    errors: dict[int, list[float]] = {version: [] for version in range(len(policies))}
    others: list[float] = []
    for row in shards(run):
        prompt, tokens, stored = row["prompt_token_ids"], row["token_ids"], np.array(row["logprobs"])
        assert row["policy_versions"][-1][1] == len(tokens) == len(stored)
        for start, end, version in row["policy_versions"]:
            recomputed = log_likelihood(policies[version], prompt, tokens).numpy()
            errors[version].extend(np.abs(recomputed - stored)[start:end])
            other = log_likelihood(policies[version - 1], prompt, tokens).numpy()
            others.extend(np.abs(other - stored)[start:end])
    assert len(errors[0]) > 100
    assert len(errors[1]) > 100
    for version, found in errors.items():
        assert max(found, default=0) < 1e-4, f"version {version}"
    assert max(others) > 1e-3  # another version's are told apart


def test_ledger_shards_and_summary_agree(run: Run) -> None:
    with sqlite3.connect(run.path / "ledger.db") as ledger:
        draws = {row[0]: row[1:] for row in ledger.execute("SELECT draw_id, state, step, version, tokens FROM draws")}
    rows = shards(run)
    summary = run.json("rl/summary.json")
    states = Counter(state for state, *_ in draws.values())
    assert states["trained"] == summary["groups_trained"] == STEPS * PROMPTS
    assert states["rejected"] == summary["groups_rejected"] == sum(summary["rejected_by_reason"].values())
    by_step = Counter(step for state, step, *_ in draws.values() if state == "trained")
    assert by_step == dict.fromkeys(range(1, STEPS + 1), PROMPTS)

    assert len({(row["draw_id"], row["rollout"]) for row in rows}) == len(rows)  # each once
    assert set(Counter(row["draw_id"] for row in rows).values()) == {GROUP}
    oldest: dict[int, int] = {}
    tokens: Counter[int] = Counter()
    for row in rows:
        assert len(row["loss_mask"]) == len(row["token_ids"])
        oldest[row["draw_id"]] = min(row["first_version"], oldest.get(row["draw_id"], row["first_version"]))
        tokens[row["draw_id"]] += len(row["token_ids"])
    trained = {draw for draw, (state, *_) in draws.items() if state == "trained"}
    assert trained <= set(tokens) <= set(draws)  # what was judged after the last checkpoint has no row
    for draw in tokens:
        assert draws[draw][3] == tokens[draw] or draws[draw][0] == "drawn"  # judged, and the run was over
    staleness = [step - 1 - oldest[draw] for draw, (state, step, *_) in draws.items() if state == "trained"]
    assert max(staleness) == summary["max_staleness_seen"] <= BOUND
    assert min(staleness) >= 0
    assert sum(tokens.values()) <= summary["tokens_generated"]


def test_trained_groups_are_mixed_and_rejected_ones_are_not(run: Run) -> None:
    with sqlite3.connect(run.path / "ledger.db") as ledger:
        draws = ledger.execute("SELECT draw_id, state, reason, solved FROM draws WHERE state != 'drawn'").fetchall()
    outcomes: Counter[int] = Counter()
    for row in shards(run):
        outcomes[row["draw_id"]] += row["outcome"]
    for draw, state, reason, solved in draws:
        assert outcomes.get(draw, solved) == solved
        assert (state == "rejected") == (solved in (0, GROUP) or reason == "stale"), reason
    assert all(0 < outcomes[draw] < GROUP for draw, state, *_ in draws if state == "trained")


def test_metrics_are_written(run: Run) -> None:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "rl" and "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["train/learning_rate"] == 1e-4 and line["train/tokens"] > 0 for line in steps)
    assert [line["step"] for line in lines if "eval/pass@1" in line] == [0, 2]
    for stage in STAGES:
        scalars = EventAccumulator(str(run.path / "tensorboard" / stage)).Reload()
        assert scalars.Tags()["scalars"], stage
    rewards = EventAccumulator(str(run.path / "tensorboard/rl")).Reload().Scalars("reward")
    assert [event.value for event in rewards] == pytest.approx([line["reward"] for line in steps])


def test_pairs_are_corner_cases_against_clean_answers(run: Run) -> None:
    pairs = read_table(run.path / "dpo/pairs.parquet").to_pylist()
    assert {pair["reason"] for pair in pairs} <= {"format", "run_on", "empty", "repetition", "refusal", "near_miss"}
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    drawn = {row["draw_id"] for row in shards(run)} | {-1}  # -1: a fresh sample
    assert {pair["rejected_draw_id"] for pair in pairs} | {pair["chosen_draw_id"] for pair in pairs} <= drawn


def test_transcripts_are_printed(run: Run) -> None:
    shown = posttrain("rollouts", str(run.path), "-n", "3", "--capability", "math", cwd=run.path.parent).out
    assert shown.count("assistant:") == shown.count("user:") == 3
    assert shown.count("math  versions ") == 3
    assert shown.count("reward ") == 3
    assert "solved  reward " in shown
    unsolved = posttrain("rollouts", str(run.path), "--unsolved", cwd=run.path.parent).out
    assert unsolved.count("unsolved  reward 0") == unsolved.count("assistant:") > 0


def test_running_again_does_nothing_more_than_say_so(run: Run) -> None:
    def state() -> dict[str, int]:
        kept = [path for stage in STAGES for path in (run.path / stage).rglob("*")]
        return {str(path): path.stat().st_mtime_ns for path in [*kept, run.path / "ledger.db", run.path / "eval"]}

    before, summary = state(), run.json("summary.json")
    said = posttrain("run", "small.yaml", cwd=run.path.parent.parent).err
    for stage in STAGES:
        assert f"{stage}: done ({run.checkpoints(stage)[-1]})" in said
    assert "evaluation of" not in said
    assert "step " not in said
    assert state() == before
    again = run.json("summary.json")
    assert again.pop("seconds") >= summary.pop("seconds")
    assert again == summary
