"""Rollouts of several turns with the real engine: what is stored with each token is what transformers says of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain import data
from posttrain.cluster import Cluster, run
from posttrain.config import load_config, resolve_model
from posttrain.tiny.calculator import MAX_REPLIES, reply
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout

BASE = resolve_model("tiny:base")
CONFIG = load_config("tiny-calculator", ["generators.kv_cache_gib=0.125", "data.prompts.limit=400"])
GROUP = 4


@dataclass(frozen=True)
class Sample:
    """One rollout with what it continues."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    rollout: Rollout

    @property
    def replies(self) -> list[str]:
        return [turn["content"] for turn in self.rollout.turns if turn["role"] == "user"]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(BASE)


@pytest.fixture(scope="module")
def samples(renderer: Renderer) -> Iterator[list[Sample]]:
    """Rollouts of math and code prompts, as RL with the preset asks for them."""
    rows = data.prompts(CONFIG, "prompts", renderer, CONFIG.rl.sampling.max_tokens, print)
    prompts = [row for row in rows if row.capability == "math"][:90] + [
        row for row in rows if row.capability == "code"
    ][:10]
    sampling = CONFIG.rl.sampling.sampling()
    requests = [
        Request(
            renderer.prompt_tokens(prompt.messages), sampling, GROUP, 100 * index,
            conversation=data.conversation(CONFIG, prompt),
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    with Cluster(CONFIG) as cluster:
        groups = run(cluster.pool(BASE).generate(requests))
    return [
        Sample(prompt, request.prompt_token_ids, rollout)
        for prompt, request, group in zip(prompts, requests, groups, strict=True)
        for rollout in group
    ]


@pytest.fixture(scope="module")
def logprobs() -> Iterator[object]:
    """Log-probabilities at the sampling temperature of all tokens but the first, by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()

    def of(token_ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([token_ids])).logits[0, :-1] / CONFIG.rl.sampling.temperature
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist()

    return of


def test_the_calculator_replies_in_some_rollouts_and_only_in_math(samples: list[Sample]) -> None:
    answered = [sample for sample in samples if sample.replies]
    assert len(answered) >= 10
    assert {sample.prompt.capability for sample in answered} == {"math"}
    assert max(len(sample.replies) for sample in samples) <= MAX_REPLIES
    for sample in samples:
        said = [turn["content"] for turn in sample.rollout.turns if turn["role"] == "assistant"]
        assert sample.replies == [reply(sample.prompt, said[: index + 1]) for index in range(len(sample.replies))]
        assert sample.rollout.text == said[-1]


def test_replies_are_in_the_tokens_and_outside_the_loss(samples: list[Sample], renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    for sample in samples:
        rollout = sample.rollout
        outside = [token for token, own in zip(rollout.token_ids, rollout.loss_mask, strict=True) if not own]
        assert tokenizer.decode(outside) == "".join(f"<|user|>{said}<|end|><|assistant|>" for said in sample.replies)
        assert {value for value, own in zip(rollout.logprobs, rollout.loss_mask, strict=True) if not own} <= {0.0}
        if not rollout.truncated:
            whole = [*sample.prompt.messages, *rollout.turns]
            rendered = tokenizer.apply_chat_template(whole, tokenize=False)
            assert tokenizer.decode([*sample.prompt_token_ids, *rollout.token_ids]) == rendered


def test_logprobs_of_all_turns_are_those_given_everything_before(samples: list[Sample], logprobs) -> None:
    later, worst, without_reply = 0, 0.0, 0.0
    for sample in samples:
        rollout, prompt = sample.rollout, list(sample.prompt_token_ids)
        found = logprobs(prompt + rollout.token_ids)[len(prompt) - 1 :]
        for value, stored, own in zip(found, rollout.logprobs, rollout.loss_mask, strict=True):
            worst = max(worst, abs(value - stored) if own else 0.0)
        if not sample.replies:
            continue
        later += sum(rollout.loss_mask[rollout.loss_mask.index(False) :])
        mine = [token for token, own in zip(rollout.token_ids, rollout.loss_mask, strict=True) if own]
        stored = [value for value, own in zip(rollout.logprobs, rollout.loss_mask, strict=True) if own]
        blind = logprobs(prompt + mine)[len(prompt) - 1 :]
        without_reply = max(without_reply, *(abs(a - b) for a, b in zip(blind, stored, strict=True)))
    assert later >= 50
    assert worst < 1e-4
    assert without_reply > 0.1  # so the bound above tells whether the replies are among what is given
