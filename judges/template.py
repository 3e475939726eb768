"""What a judge is asked: a template filled with texts that can pose as nothing but texts.

An answer may try to speak for the judge, and a policy that is rewarded for it learns to. So no text becomes a special
token of the judge's, by which it could end its turn and begin another: those that are spelt in it get a space. And a
template may put the answer between two lines `{fence}` that it cannot end: they have a hash of all texts in them, which
none of the texts can foretell. A hash, not a random number, since the same question is to have the same verdict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

from rollouts.types import Message

Plain = Callable[[str], str]
"""Makes a text harmless to a judge."""

MARKS = re.compile(
    r"<(?=[|｜][^\s<>]{1,64}[|｜]>|/?s>|(?:start|end)_of_turn>|(?:bos|eos)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)
"""Where special tokens of the usual families begin: a judge behind an endpoint does not tell its own."""


def plain(text: str) -> str:
    """The text with a space in each of the usual special tokens that it spells. Example: `< |eot_id|>`."""
    return MARKS.sub(lambda mark: f"{mark.group()} ", text)


def question(messages: Sequence[Message]) -> str:
    """What was said, as one text; the system instruction is left out."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def fill(template: str, texts: Mapping[str, str], harmless: Plain = plain) -> str:
    """The template with a text in each place, and the same fence in the places `{fence}`.

    Args:
        template: with places such as `{prompt}`.
        texts: by the names of their places; a text may itself speak of places.
        harmless: what is done to each text; by default what suits a judge of which only an address is known.
    """
    said = {name: harmless(text) for name, text in texts.items()}
    fence = f"---- {hashlib.sha256('|'.join(said.values()).encode(errors='replace')).hexdigest()[:16]} ----"
    places = "|".join(map(re.escape, (*said, "fence")))
    return re.sub(rf"\{{({places})\}}", lambda place: {**said, "fence": fence}[place[1]], template)
