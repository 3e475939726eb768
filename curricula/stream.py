"""Prompts of a source that is read no further than is needed: an iterable data set, or a generator without an end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from curricula.rows import Row
from rollouts.errors import DataError
from rollouts.types import Prompt

PROMPT_JSON: TypeAdapter[Prompt] = TypeAdapter(Prompt)
"""A prompt as JSON and back."""


class PromptStream:
    """The prompts of a source, row by row; at its end it begins anew, as an epoch does.

    Example: `PromptStream("my_module:rows", rows, read, fits).read()` is the prompt of the first row.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterator[Row]],
        read: Callable[[Row], Prompt],
        fits: Callable[[Prompt], bool],
    ) -> None:
        """Reads nothing yet.

        Args:
            name: of the source, for errors.
            rows: opens the source; called again at its end. It is to give the same rows again, or a resumed run goes on
                with others.
            read: a row as a prompt.
            fits: whether a prompt is short enough.
        """
        self.name, self.fits = name, fits
        self._open, self._read = rows, read
        self._rows: Iterator[Row] | None = None
        self.passes = 0  # over the whole source
        self.position = 0  # rows read in this one

    def seek(self, passes: int, position: int) -> None:
        """Goes on behind the row that is number `position`, counted from 1; rows before it are read and forgotten."""
        self._rows, self.passes, self.position = None, passes, position

    def first(self, count: int, patience: int, capabilities: Collection[str] = ()) -> list[Prompt]:
        """The next so many prompts that fit, each content once; fewer at the end of the source.

        Args:
            count: how many.
            patience: rows in a row that may be none of these, after which there are fewer too.
            capabilities: only prompts of these; empty: of any.

        Raises:
            DataError: a row is bad, or there is no such prompt.
        """
        found: dict[str, Prompt] = {}
        left = patience
        while len(found) < count and left:
            prompt = self.read()
            if prompt is None:
                break
            left -= 1
            wanted = not capabilities or prompt.domain in capabilities
            if wanted and prompt.prompt_id not in found and self.fits(prompt):
                found[prompt.prompt_id], left = prompt, patience
        if not found:
            of = f" of the capability {' or '.join(capabilities)}" if capabilities else ""
            problem = f"none of the {patience - left:,} rows read is a prompt{of} that leaves room for an answer"
            raise DataError(f"{self.name}: {problem} within max_model_len")
        return list(found.values())

    def read(self) -> Prompt | None:
        """The prompt of the next row; None at the end of the source.

        A prompt is what JSON makes of it, since a checkpoint keeps it as that: the same before and after a resume.

        Raises:
            DataError: the row is bad, or the source has none at all.
        """
        if self._rows is None:
            self._rows = islice(self._open(), self.position, None)
        row = next(self._rows, None)
        if row is None:
            if self.passes == self.position == 0:
                raise DataError(f"{self.name}: no rows; set data.prompts.path to a source that has some")
            self._rows, self.passes, self.position = None, self.passes + 1, 0
            return None
        self.position += 1
        prompt = self._read(row)
        try:
            return PROMPT_JSON.validate_json(PROMPT_JSON.dump_json(prompt))
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            problem = f"a value that JSON has no form for ({error}); a checkpoint keeps the window's prompts as JSON"
            raise DataError(
                f"{row.place}: {problem}: leave that field out, or set data.prompts.window to null"
            ) from None
