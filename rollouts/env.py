"""Environments: what answers the policy within a rollout.

An environment is a plain function, named in the configuration by its dotted path (`environment: my_env:reply`):

    def reply(prompt: Prompt, turns: list[str]) -> str | None

It is told what the policy has said so far, turn by turn, and returns what the policy is told next, or None when the
conversation is over. Without one every rollout is a single turn. Tokens in, tokens out: what was sampled is never
tokenized again; the reply's tokens are put between, outside the loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from rollouts.errors import JudgeError
from rollouts.types import Message, Prompt, Rollout, Sampling, Span

Reply = Callable[[Prompt, list[str]], str | None]
Complete = Callable[[tuple[int, ...], Sampling, int | None], Awaitable[Rollout]]
"""One completion of tokens, with the sampling and the seed given."""

MAX_TURNS = 16
WORDS = "words of the assistant"
"""By which the place of an assistant's words is found in what a template renders."""


async def converse(
    prompt: Prompt,
    prompt_token_ids: tuple[int, ...],
    sampling: Sampling,
    seed: int | None,
    complete: Complete,
    reply: Reply,
    tokenizer: Any,
) -> Rollout:
    """One rollout of several turns; its `text` is the policy's last one, which holds the answer.

    Args:
        prompt: what the environment is told of.
        prompt_token_ids: rendered up to where the policy speaks.
        sampling: `max_tokens` bounds the whole rollout, replies included.
        seed: of the first turn; each turn has another.
        complete: samples one turn.
        reply: the environment.
        tokenizer: with the chat template that the replies are rendered by.

    Raises:
        JudgeError: the environment failed; never to be counted as the policy's failure.
    """
    whole = Rollout([], [], [], [], "length", "")
    turns: list[str] = []
    while (room := sampling.max_tokens - len(whole.token_ids)) > 0 and len(turns) < MAX_TURNS:
        turn_seed = None if seed is None else seed + 7919 * len(turns)
        tokens = (*prompt_token_ids, *whole.token_ids)
        turn = await complete(tokens, replace(sampling, max_tokens=room), turn_seed)
        _extend(whole, turn.token_ids, turn.logprobs, turn.policy_versions)
        whole.finish_reason, whole.text = turn.finish_reason, turn.text
        turns.append(turn.text)
        whole.turns.append({"role": "assistant", "content": turn.text})
        if turn.truncated:
            return whole
        try:
            said = await asyncio.to_thread(reply, prompt, list(turns))
        except Exception as error:
            raise JudgeError(f"environment failed on prompt {prompt.prompt_id}: {error!r}") from error
        if said is None:
            return whole
        if not isinstance(said, str):
            raise JudgeError(
                f"environment returned {said!r:.80} for prompt {prompt.prompt_id}; expected a text, or None at the end"
            )
        reply_ids = reply_tokens(tokenizer, said, turn.token_ids)
        if len(whole.token_ids) + len(reply_ids) >= sampling.max_tokens:
            break
        _extend(whole, reply_ids, None, [(0, len(reply_ids), turn.policy_versions[-1][2])])
        whole.turns.append({"role": "user", "content": said})
    whole.finish_reason = "length"
    return whole


def _extend(whole: Rollout, token_ids: list[int], logprobs: list[float] | None, spans: list[Span]) -> None:
    """Appends a turn of the policy, or a reply (which has no log-probabilities and is outside the loss)."""
    offset = len(whole.token_ids)
    whole.token_ids += token_ids
    whole.loss_mask += [logprobs is not None] * len(token_ids)
    whole.logprobs += logprobs if logprobs is not None else [0.0] * len(token_ids)
    whole.policy_versions += [(start + offset, end + offset, version) for start, end, version in spans]


def reply_tokens(tokenizer: Any, text: str, turn: Sequence[int]) -> list[int]:
    """The tokens that a chat template puts between two turns of the assistant, for a user who says `text`.

    Rendered as the difference of two conversations, since templates render only whole ones. The first token, with which
    the template ends a turn, is left out where the tokens of the `turn` end with it: after a stop text they do not.
    """
    before = _rendered(tokenizer)
    rendered = _rendered(tokenizer, {"role": "user", "content": text}, add_generation_prompt=True)
    if not rendered.startswith(before):
        raise JudgeError("the chat template renders an earlier turn differently once another follows; no environment")
    ids: list[int] = tokenizer(rendered.partition(WORDS)[2], add_special_tokens=False)["input_ids"]
    return ids[1:] if ids[:1] == list(turn[-1:]) else ids


def _rendered(tokenizer: Any, *further: Message, **options: Any) -> str:
    """A conversation in which the assistant says `WORDS`, and what follows."""
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": WORDS}, *further]
    text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    return text
