"""Chat messages to tokens: the one place where a chat template is applied.

Sampled completions are never tokenized again: what the engine sampled is what the trainer sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

from rollouts.errors import DataError, first_line
from rollouts.types import Prompt

IGNORED = -100
"""The label of a token that the loss is not on, as torch's cross entropy has it."""


class Renderer:
    """Renders prompts with the chat template of a checkpoint's tokenizer."""

    def __init__(self, model: str) -> None:
        """Loads the tokenizer of a Hugging Face model directory.

        Raises:
            DataError: there is no tokenizer, or it has no chat template.
        """
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:  # what a missing or broken file raises
            reason = first_line(error)
            raise DataError(f"{model}: its tokenizer cannot be loaded: {reason}") from None
        self._model = model
        if not self.tokenizer.chat_template:
            raise DataError(f"{model}: the tokenizer has no chat template; add one as chat_template.jinja")
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special = sorted(added.union(self.tokenizer.all_special_tokens))
        first = [f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in special if len(text) > 1]
        self._special = re.compile("|".join(first) or "(?!)")  # the first letter of each

    def prompt_tokens(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of the conversation up to where the assistant speaks.

        Raises:
            DataError: the chat template refuses it, as some do with system instructions or two turns of one role.
        """
        found = self._applied(messages, add_generation_prompt=True, return_dict=True)
        return tuple(found["input_ids"])

    def text(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it.

        Raises:
            DataError: as for `prompt_tokens`.
        """
        found: str = self._applied(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
        return found

    def labelled(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids [T] of a conversation, and labels [T]: the same where the assistant speaks, else -100.

        The assistant speaks from where the prompt before its turn ends, to the end of the turn, with the tokens that
        end it: what it would have to sample. A turn that later turns change, as with templates that leave out the
        thoughts of earlier answers, has no loss: it would never be sampled so.

        Raises:
            DataError: as for `prompt_tokens`; or the tokenizer does not tell which characters a token is of.
        """
        text, spans = self.text(messages), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            so_far = text if index == len(messages) - 1 else self.text(messages[: index + 1])
            if text.startswith(so_far):
                prompt = self.text(messages[:index], add_generation_prompt=True)
                spans.append((len(commonprefix([prompt, so_far])), len(so_far)))  # noqa: RUF071 - of texts, not paths
        try:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError:
            raise DataError(f"{self._model}: its tokenizer has no fast form, which SFT needs") from None
        own = [any(start < end <= stop for start, stop in spans) for _, end in found["offset_mapping"]]
        ids: list[int] = found["input_ids"]
        return ids, [token if speaks else IGNORED for token, speaks in zip(ids, own, strict=True)]

    def _applied(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(list(messages), **options)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"{self._model}: its chat template refuses turns of {roles}: {error}") from None

    def plain(self, text: str) -> str:
        """The text with a space in each special token that it spells, so that it is tokenized as text throughout."""
        return self._special.sub(lambda first: f"{first.group()} ", text)

    def fitting(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Prompt]:
        """The prompts that leave room for an answer within a context of `max_tokens`."""
        return [prompt for prompt in prompts if len(self.prompt_tokens(prompt.messages)) <= max_tokens]
