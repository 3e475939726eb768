"""The checks of `posttrain doctor`, without an engine: what passes, what fails, and the cause that is named."""

import math
import random
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from posttrain import doctor
from posttrain.config import Config, RLConfig, load_config, resolve_model
from posttrain.doctor import (
    GIB,
    ExaminedTrainer,
    Finding,
    Gpu,
    check_disk,
    check_end_of_turn,
    check_memory,
    check_template,
    compare_devices,
    compare_update,
    count_parameters,
    end_of_turn,
    free_memory,
    needs,
    stop_tokens,
)
from posttrain.parity import TOLERANCES, Difference, Hypothesis, explain, hypotheses, token_logprobs
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, RolloutGroup

BASE = resolve_model("tiny:base")
MESSAGES = ({"role": "system", "content": "Answer."}, {"role": "user", "content": "47+38"})


def rl(**sampling: object) -> RLConfig:
    return RLConfig.model_validate({"sampling": sampling})


# --------------------------------------------------------------------------------------------------- finding causes

LOGITS_NV = torch.randn(400, 50, generator=torch.Generator().manual_seed(1)) * 3


def sampled(temperature: float = 1.0, top_p: float = 1.0, top_k: int = -1) -> torch.Tensor:
    """Tokens drawn from what the engine leaves: [N]."""
    everything = torch.stack(
        [token_logprobs(LOGITS_NV, torch.full((400,), token), temperature, top_p, top_k) for token in range(50)], dim=1
    )
    return torch.multinomial(everything.exp(), 1, generator=torch.Generator().manual_seed(2)).squeeze(1)


def named(stored_N: torch.Tensor, tokens_N: torch.Tensor, config: RLConfig, dtype: str = "float32") -> str:
    """The cause, where the trainer computes over the whole vocabulary at the configured temperature."""
    trainer_N = token_logprobs(LOGITS_NV, tokens_N, config.sampling.temperature)
    under = [
        (each.cause, token_logprobs(LOGITS_NV, tokens_N, each.temperature, each.top_p, each.top_k))
        for each in hypotheses(config)
        if each.cause.startswith("rl.sampling")
    ]
    return explain(stored_N, Difference.of(stored_N, trainer_N), under, dtype)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, -1), (0.7, 1.0, -1), (1.0, 0.6, -1), (1.3, 1.0, 4), (0.7, 0.8, 10)]
)
def test_token_logprobs_are_those_of_a_plain_loop(temperature: float, top_p: float, top_k: int) -> None:
    tokens_N = sampled(temperature, top_p, top_k)
    found_N = token_logprobs(LOGITS_NV, tokens_N, temperature, top_p, top_k)
    for logits, token, found in zip(LOGITS_NV.tolist()[:50], tokens_N.tolist(), found_N.tolist(), strict=False):
        weights = {index: math.exp(logit / temperature) for index, logit in enumerate(logits)}
        kept = sorted(weights, key=weights.__getitem__, reverse=True)[: top_k if top_k > 0 else None]
        total, mass, nucleus = sum(weights[index] for index in kept), 0.0, []
        for index in kept:
            if mass < top_p:
                nucleus.append(index)
            mass += weights[index] / total
        assert found == pytest.approx(math.log(weights[token] / sum(weights[index] for index in nucleus)), abs=1e-4)


def test_a_token_that_is_left_out_is_impossible() -> None:
    least_N = LOGITS_NV.argmin(-1)
    assert token_logprobs(LOGITS_NV, least_N, top_k=3).max() == -torch.inf
    assert not Difference.of(torch.tensor([-torch.inf]), torch.tensor([-1.0])).within(TOLERANCES["bfloat16"])
    assert not Difference.of(torch.tensor([torch.nan]), torch.tensor([-1.0])).within(TOLERANCES["bfloat16"])


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    ("sampling", "as_engine", "key"),
    [
        ({"top_p": 0.5}, (1.0, 0.5, -1), "rl.sampling.top_p=0.5: "),
        ({"top_k": 5}, (1.0, 1.0, 5), "rl.sampling.top_k=5: "),
        ({"top_p": 0.9, "top_k": 20, "temperature": 0.8}, (0.8, 0.9, 20), "rl.sampling.top_p=0.9, rl.sampling.top_k="),
        ({"temperature": 0.7}, (1.0, 1.0, -1), "rl.sampling.temperature=0.7: "),
        ({"temperature": 0.7, "top_p": 0.9}, (1.0, 1.0, -1), "rl.sampling.temperature=0.7: "),
    ],
)
def test_the_cause_is_the_mistake_that_was_made(
    sampling: dict[str, object], as_engine: tuple[float, float, int], key: str, dtype: str
) -> None:
    tokens_N = sampled(*as_engine)
    stored_N = token_logprobs(LOGITS_NV, tokens_N, *as_engine)
    noise_N = torch.randn(400, generator=torch.Generator().manual_seed(3)) * TOLERANCES[dtype].mean / 4
    assert named(stored_N + noise_N, tokens_N, rl(**sampling), dtype).startswith(key)


def test_no_setting_is_blamed_for_other_weights() -> None:
    tokens_N = sampled()
    other_N = token_logprobs(LOGITS_NV + torch.randn(400, 50, generator=torch.Generator().manual_seed(4)), tokens_N)
    for sampling in ({}, {"top_p": 0.9}, {"temperature": 0.9}):
        assert "the engine may have other weights" in named(other_N, tokens_N, rl(**sampling))


def test_rounding_in_a_float32_run_is_blamed_on_the_dtype() -> None:
    tokens_N = sampled()
    stored_N = token_logprobs(LOGITS_NV.bfloat16().float(), tokens_N)
    assert named(stored_N, tokens_N, rl()).startswith("dtype: ")


# --------------------------------------------------------------------------------------------------------- weights


def groups(tokens: list[list[int]], finish_reason: str = "stop") -> list[RolloutGroup]:
    """One group with these completions of one prompt, as the tiny model's engine would give them."""
    renderer = Renderer(BASE)
    prompt = list(renderer.prompt_tokens(MESSAGES))
    rollouts = [
        Rollout(
            ids, [True] * len(ids), [-1.0] * len(ids), [], finish_reason,
            renderer.tokenizer.decode(ids, skip_special_tokens=True),
        )
        for ids in tokens
    ]  # fmt: skip
    return [RolloutGroup(0, Prompt("p", MESSAGES), prompt, rollouts)]


def said(*texts: str) -> list[RolloutGroup]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return groups([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts])


@pytest.mark.parametrize("settings", [{}, {"share_prompts": True}, {"tokens_per_microbatch": 1, "truncated": "mask"}])
def test_the_trainers_logprobs_are_those_of_a_plain_forward_pass(settings: dict[str, object]) -> None:
    rng = random.Random(0)
    made = groups([[rng.randrange(512) for _ in range(length)] for length in (3, 9, 1, 20)], "length")
    rl = {"sampling": {"temperature": 0.8}, **settings}
    trainer = ExaminedTrainer(BASE, BASE, Config.model_validate({"model": BASE, "dtype": "float32", "rl": rl}))
    stored_N, now_N = trainer.logprobs(*made)
    assert (stored_N == -1).all()
    plain_N = trainer.under(Hypothesis("", 0.8), *made)
    assert plain_N.shape == (33,)
    torch.testing.assert_close(now_N.sort()[0], plain_N.sort()[0], atol=1e-4, rtol=1e-4)  # the rows' order is another
    before = [parameter.clone() for parameter in trainer.policy.parameters()]
    trainer.perturb(0)
    assert all((old != new).any() for old, new in zip(before, trainer.policy.parameters(), strict=True))
    assert Difference.of(trainer.under(Hypothesis("", 0.8), *made), plain_N).mean > 0.03


def test_an_update_is_told_from_one_that_was_skipped_or_is_not_whole() -> None:
    was, expected = -torch.rand(100), -torch.rand(100) - 1
    good = compare_update(was, expected + 1e-5, was, expected, "float32")
    assert good.ok
    assert good.cause == ""
    skipped = compare_update(was, was + 1e-5, was, expected, "float32")
    assert not skipped.ok
    assert skipped.cause.startswith("stale weights")
    partly = compare_update(was, (was + expected) / 2, was, expected, "float32")
    assert not partly.ok
    assert "packed copy is stale" in partly.cause
    nothing = compare_update(was, was, was, was, "float32")
    assert not nothing.ok
    assert nothing.cause.startswith("too small a change")


# ---------------------------------------------------------------------------------------------------- chat template


def test_the_tiny_template_goes_there_and_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    found = check_template(tokenizer, said("47+38=85\n<ans>85</ans>", "85"))
    assert found.ok
    assert "0 of 2 answers" in found.detail


def test_answers_that_tokenize_otherwise_are_a_warning() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    whole = tokenizer("return the", add_special_tokens=False)["input_ids"]
    letters = [token for letter in "return the" for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    assert len(whole) < len(letters)
    found = check_template(tokenizer, groups([[*whole, 5], [*letters, 5]]))
    assert found.ok
    assert "1 of 2 answers (50.0%)" in found.detail


def test_a_generation_prompt_that_no_conversation_has_fails() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    made = said("85")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ '<|assistant|>' }}{% gen", "{{ '<|user|>' }}{% gen")
    found = check_template(tokenizer, made)
    assert not found.ok
    assert f"differ from token {len(made[0].prompt_token_ids) - 1} on" in found.detail
    assert "generation prompt is not how it renders an assistant's turn" in found.cause


def test_the_end_of_turn_is_found_in_the_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert end_of_turn(tokenizer, MESSAGES) == tokenizer.convert_tokens_to_ids("<|end|>") == 5
    assert stop_tokens(BASE, tokenizer) == [5]
    assert check_end_of_turn(tokenizer, [5], said("85")).ok
    assert check_end_of_turn(tokenizer, [0, 5], said("85")).ok
    found = check_end_of_turn(tokenizer, [0], said("85"))
    assert not found.ok
    assert "ends a turn with <|end|> (token 5), the engine stops at <|pad|>" in found.cause
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content'] + '<|end|>'", "message['content']", 1)
    assert end_of_turn(tokenizer, MESSAGES) is None
    assert not check_end_of_turn(tokenizer, [5], said("85")).ok


# ----------------------------------------------------------------------------------------------- memory and devices


def test_the_parameters_are_counted_without_loading_them() -> None:
    trainer = ExaminedTrainer(BASE, BASE, Config(model=BASE, dtype="float32"))
    assert count_parameters(BASE) == trainer.policy.causal.num_parameters()


def test_what_a_run_needs() -> None:
    config = load_config("tiny", ["dtype=bfloat16", "generators.count=3", "generators.kv_cache_gib=0.5"])
    found = needs(config, GIB)
    assert (found.trainer, found.engine, found.engines, found.published) == (16 * GIB, 2.5 * GIB, 3, 4 * GIB)
    assert found.memory == (16 + 7.5 + 4) * GIB
    assert found.share is None
    assert needs(load_config("tiny", ["rl.kl_coef=0.1"]), GIB).trainer == 20 * GIB


def test_memory_of_a_host_without_gpus() -> None:
    needed = needs(load_config("tiny", ["generators.kv_cache_gib=1.0"]), GIB // 4)
    enough = check_memory(needed, needed.memory, [])
    assert enough.ok
    assert "RAM needed 10.00 GiB, free 10.00 GiB" in enough.detail
    short = check_memory(needed, needed.memory - 1, [])
    assert not short.ok
    assert short.cause.startswith("too little on RAM: ")


def test_memory_of_each_gpu() -> None:
    needed = needs(load_config("tiny", ["generators.kv_cache_gib=1.0"]), GIB)  # engines 5 GiB, trainer 16, published 8
    gpus = [Gpu(16 * GIB, 80 * GIB), Gpu(5 * GIB, 80 * GIB), Gpu(5 * GIB, 80 * GIB)]
    assert check_memory(needed, 8 * GIB, gpus).ok
    found = check_memory(needed, 8 * GIB, [Gpu(15 * GIB, 80 * GIB), *gpus[1:]])
    assert not found.ok
    assert found.cause.startswith("too little on GPU 0: ")
    assert check_memory(needed, 8 * GIB - 1, gpus).cause.startswith("too little on RAM: ")
    whole = replace(needed, share=0.85)  # vLLM takes that share, whatever it needs
    assert check_memory(whole, 8 * GIB, gpus).cause.startswith("too little on GPU 1, GPU 2: ")


def test_memory_of_a_gpu_that_trainer_and_engine_share() -> None:
    shared = ["trainer.gpus=0.5", "generators.gpus=0.5", "generators.gpu_memory_utilization=0.5"]
    needed = needs(load_config("tiny", [*shared, "generators.count=1", "generators.kv_cache_gib=1.0"]), GIB)
    assert check_memory(needed, 8 * GIB, [Gpu(21 * GIB, 40 * GIB)]).ok
    found = check_memory(needed, 8 * GIB, [Gpu(21 * GIB - 1, 40 * GIB)])
    assert found.cause.startswith("too little on GPU 0: ")
    assert "GPU 0 (1 of the trainer and 1 of engines) needed 21.00 GiB, free 21.00 GiB" in found.detail
    found = check_memory(needed, 8 * GIB, [Gpu(30 * GIB, 31 * GIB)])  # half of it is less than the trainer's 16
    assert found.cause.startswith("too little on the trainer's 0.5 of GPU 0 (trainer.gpus): ")


def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 2000\ninactive_file 500\n")
    assert free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert free_memory(tmp_path) == 2500


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("tiny")  # two checkpoints of SFT, two of RL, one of DPO and one under way; the export
    places = {"run": tmp_path / "runs/new", "published": tmp_path}
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage((6 * 12 + 4) * 1000))
    assert check_disk(config, 1000, places).ok
    assert not (tmp_path / "runs").exists()
    found = check_disk(config, 1001, places)
    assert not found.ok
    assert found.cause.startswith(f"too little room on {tmp_path}: ")


@pytest.mark.parametrize(
    ("nodes", "ok"),
    [([], True), ([0], True), ([4], False), ([5], True), ([8], True), ([3, 2], True), ([1] * 8, False)],
)
def test_gpus_are_counted(nodes: list[float], ok: bool) -> None:
    config = load_config("tiny", ["generators.count=2", "generators.tensor_parallel=2"])
    found = compare_devices(config, "Ray", nodes, cores=2)
    assert found.ok == ok
    assert bool(found.cause) != ok
    if any(nodes):
        asked = "needed trainer.ranks=1 with 1 GPU each, generators.count=2 with 2 GPUs each: 5 GPUs"
        assert found.detail == f"Ray, {sum(nodes)} GPUs; {asked}"
    if nodes == [1] * 8:
        assert found.cause.startswith("2 of them on one node, and no node of the Ray cluster has more than 1; ")


def test_a_finding_is_one_line() -> None:
    assert str(Finding("memory", True, "enough")) == "ok      memory: enough"
    assert str(Finding("memory", False, "1 of 2", "free some")) == "FAILED  memory: 1 of 2; free some"
