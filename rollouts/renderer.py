"""Chat messages to tokens: the one place where a chat template is applied.

Sampled completions are never tokenized again: what the engine sampled is what the trainer sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from rollouts.errors import DataError
from rollouts.types import Prompt


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
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
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
        try:
            found = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"{self._model}: its chat template refuses turns of {roles}: {error}") from None
        return tuple(found["input_ids"])

    def plain(self, text: str) -> str:
        """The text with a space in each special token that it spells, so that it is tokenized as text throughout."""
        return self._special.sub(lambda first: f"{first.group()} ", text)

    def fitting(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Prompt]:
        """The prompts that leave room for an answer within a context of `max_tokens`."""
        return [prompt for prompt in prompts if len(self.prompt_tokens(prompt.messages)) <= max_tokens]
