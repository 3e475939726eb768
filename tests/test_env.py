"""Rollouts of several turns: tokens in, tokens out, the environment's words outside the loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from posttrain.config import resolve_model
from rollouts.env import WORDS, _rendered, converse, reply_tokens
from rollouts.errors import JudgeError
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, Sampling

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT = Prompt("p", ({"role": "user", "content": "47+38"},), answer="85")


def turn_end(tokenizer: Any) -> list[int]:
    """The tokens that a chat template puts behind the assistant's words at the end of a conversation."""
    ids: list[int] = tokenizer(_rendered(tokenizer).partition(WORDS)[2], add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(resolve_model("tiny:base"))


def conversation(
    renderer: Renderer, said: list[str], reply, max_tokens: int = 64, ends: bool = True
) -> tuple[Rollout, list]:
    """Runs `converse` with a policy that says these things in turn; gives the rollout and what it was asked.

    The turns `end` with a token of their own, or else by a stop text.
    """
    asked: list[tuple[tuple[int, ...], int, int | None]] = []
    end = turn_end(renderer.tokenizer)[:1] if ends else []

    async def complete(tokens: tuple[int, ...], sampling: Sampling, seed: int | None) -> Rollout:
        text = said[len(asked)]
        asked.append((tokens, sampling.max_tokens, seed))
        ids = [*renderer.tokenizer(text)["input_ids"], *end]
        return Rollout(ids, [True] * len(ids), [-0.5] * len(ids), [(0, len(ids), len(asked))], "stop", text)

    prompt_ids = renderer.prompt_tokens(PROMPT.messages)
    sampling = Sampling(max_tokens=max_tokens)
    rollout = asyncio.run(converse(PROMPT, prompt_ids, sampling, 5, complete, reply, renderer.tokenizer))
    return rollout, asked


def test_turns_are_laid_end_to_end_as_the_template_would(renderer: Renderer) -> None:
    rollout, asked = conversation(
        renderer, ["calc 47+38", "85"], lambda prompt, turns: "= 85" if len(turns) == 1 else None
    )
    whole = [
        *PROMPT.messages,
        {"role": "assistant", "content": "calc 47+38"},
        {"role": "user", "content": "= 85"},
        {"role": "assistant", "content": "85"},
    ]
    rendered = renderer.tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    assert list(renderer.prompt_tokens(PROMPT.messages)) + rollout.token_ids == rendered
    between = reply_tokens(renderer.tokenizer, "= 85", turn_end(renderer.tokenizer))
    first = len(asked[1][0]) - len(asked[0][0]) - len(between)
    assert rollout.loss_mask == [True] * first + [False] * len(between) + [True] * (
        len(rollout.token_ids) - first - len(between)
    )
    assert [logprob for logprob, mask in zip(rollout.logprobs, rollout.loss_mask, strict=True) if not mask] == [
        0.0
    ] * len(between)
    assert rollout.policy_versions[0][2] == 1
    assert rollout.policy_versions[-1] == (first + len(between), len(rollout.token_ids), 2)
    assert (rollout.text, rollout.finish_reason) == ("85", "stop")
    assert [*PROMPT.messages, *rollout.turns] == whole
    assert asked[0][1] == 64
    assert asked[1][1] == 64 - first - len(between)
    assert asked[0][2] != asked[1][2]


@pytest.mark.parametrize("ends", [True, False], ids=["end of turn", "stop text"])
@pytest.mark.parametrize("template", ["own", "chatml"])
def test_what_follows_a_turn_is_what_the_template_puts_there(template: str, ends: bool) -> None:
    renderer = Renderer(resolve_model("tiny:base"))
    if template == "chatml":
        renderer.tokenizer.chat_template = CHATML
        renderer.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    rollout, asked = conversation(
        renderer, ["calc 47+38", "85"], lambda prompt, turns: "= 85" if len(turns) == 1 else None, ends=ends
    )
    whole = [*PROMPT.messages, {"role": "assistant", "content": "calc 47+38"}, {"role": "user", "content": "= 85"}]
    assert asked[1][0] == renderer.prompt_tokens(whole)
    # Behind the last turn nothing follows: what the template puts there was not sampled.
    first, last = (len(renderer.tokenizer(text)["input_ids"]) + ends for text in ("calc 47+38", "85"))
    between = len(asked[1][0]) - len(asked[0][0]) - first
    assert rollout.loss_mask == [True] * first + [False] * between + [True] * last


def test_the_token_limit_bounds_the_whole_conversation(renderer: Renderer) -> None:
    rollout, _ = conversation(renderer, ["again"] * 20, lambda prompt, turns: "more words", max_tokens=24)
    assert len(rollout.token_ids) <= 24
    assert rollout.truncated


def test_an_environment_that_fails_is_no_unsolved_rollout(renderer: Renderer) -> None:
    def reply(prompt: Prompt, turns: list[str]) -> str | None:
        raise KeyError("tool")

    with pytest.raises(JudgeError, match="environment failed on prompt p"):
        conversation(renderer, ["x"], reply)


def test_an_environment_that_replies_with_no_text_is_told(renderer: Renderer) -> None:
    with pytest.raises(
        JudgeError, match=r"environment returned \{'role': 'user'\} for prompt p; expected a text, or None"
    ):
        conversation(renderer, ["x"], lambda prompt, turns: {"role": "user"})
