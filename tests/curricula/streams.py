"""Streams of numbered prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from curricula.datasets import prompt_reader
from curricula.rows import Row
from curricula.stream import PromptStream
from rollouts.types import Prompt


def rows(capabilities: Sequence[str] = ("math",), end: int | None = None) -> Callable[[], Iterator[Row]]:
    """Row i asks for i, of the capabilities in turn; without an end where none is given."""

    def open_source() -> Iterator[Row]:
        for number in count() if end is None else range(end):
            values = {"prompt": str(number), "capability": capabilities[number % len(capabilities)]}
            yield Row(values, "numbers", number + 1)

    return open_source


def stream(source: Callable[[], Iterator[Row]], fits: Callable[[Prompt], bool] | None = None) -> PromptStream:
    """Its prompts; all of them fit unless `fits` says otherwise."""
    return PromptStream("numbers", source, prompt_reader(), fits or (lambda _: True))


def asked(prompt: Prompt) -> int:
    """The number that a prompt asks for."""
    return int(prompt.messages[-1]["content"])
