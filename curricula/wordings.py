"""Other wordings of a system instruction, so that a policy meets some that it was not trained on."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from rollouts.types import Prompt, content_id


def drop_words(prompt: Prompt, most: int, rng: random.Random) -> Prompt:
    """The prompt with 1 to `most` words of its system instruction left out, never one that names its delimiters.

    "Mark the answer with =>." may become "Mark answer with =>." It asks for the same answer in the same format, so that
    the same verifier holds. A prompt without a system instruction, or without a word to spare, stays as it is.
    """
    first = prompt.messages[0]
    if first["role"] != "system" or most < 1:
        return prompt
    words = list(re.finditer(r"\S+", first["content"]))
    named = [
        found.span()
        for delimiter in prompt.answer_format or ()
        if delimiter
        for found in re.finditer(re.escape(delimiter), first["content"])
    ]
    spare = [
        place
        for place, word in enumerate(words)
        if not any(word.start() < end and start < word.end() for start, end in named)
    ]
    if not spare or len(words) == 1:
        return prompt
    dropped = set(rng.sample(spare, min(rng.randint(1, most), len(spare), len(words) - 1)))
    kept = " ".join(word.group() for place, word in enumerate(words) if place not in dropped)
    messages = ({**first, "content": kept}, *prompt.messages[1:])
    # The old identity stands for all that stays: answer, tests, images.
    return replace(prompt, messages=messages, prompt_id=content_id(messages, prompt.prompt_id, None))
