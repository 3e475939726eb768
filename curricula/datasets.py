"""Rows of JSONL, Parquet or a `datasets` name, as prompts and demonstrations.

Every row keeps the place it came from, so that a bad one is reported as `train.jsonl:17: …`: file, line, field, and
what to do. Rows are used as they are published; a mapping from our field names to theirs makes them ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from curricula.rows import SUFFIXES, Row, iterate_rows, load_rows, short
from rollouts.errors import DataError
from rollouts.types import Message, Prompt, content_id

__all__ = [
    "FIELDS", "Demonstration", "Row", "iterate_rows", "load_demonstrations", "load_prompts", "load_rows",
    "prompt_reader",
]  # fmt: skip

log = logging.getLogger(__name__)
T = TypeVar("T")

FIELDS = (
    "messages",
    "prompt",
    "completion",
    "system",
    "answer",
    "tests",
    "format",
    "capability",
    "difficulty",
    "instruction",
    "images",
)
"""The names of ours that a mapping may give."""
PROMPT_FIELDS = {"system", "answer", "tests", "format", "capability", "difficulty", "instruction", "images"}
"""Fields of ours that a prompt has a place for, beside the one that its messages come from."""
DEMONSTRATION_FIELDS = {
    "messages": {"messages", "system", "capability", "difficulty"},
    "completion": {"prompt", "completion", "system", "capability", "difficulty"},
}
"""Fields of ours that a demonstration has a place for, by the field that its last turn comes from."""


@dataclass(frozen=True)
class Demonstration:
    """A conversation to learn from; it ends with the assistant's turn.

    `row_id` is the identity of the content; the second row of the same content is `…-2`. `extra` has the row's other
    fields.

    Example: `Demonstration("9f…", ({"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}))`
    """

    row_id: str
    messages: tuple[Message, ...]
    capability: str = "default"
    difficulty: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """`replies.jsonl:17`."""
        return f"{self.file}:{self.line}"


def load_prompts(
    path: str,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    answer_pattern: str | None = None,
    system: str | None = None,
    what: str = "data.prompts",
    no_images: str = "",
    lacking: Callable[[Prompt], str] = lambda _: "",
) -> list[Prompt]:
    """Verifiable prompts, each content once.

    Args:
        path: as for `load_rows`.
        fields: our field's name → the row's where they differ; `""`: the row's field of our name means something else.
        limit: use only the first so many rows.
        constants: our field's name → the value that all rows have.
        answer_pattern: a regular expression whose group 1 is the answer within the answer's field.
        system: a system instruction for rows that have none.
        what: the setting that errors name.
        no_images: why a row with an image is an error; empty: it is none.
        lacking: what a prompt lacks; empty: nothing.

    Raises:
        DataError: one line with file, line and field of the first bad row.
    """
    read = prompt_reader(
        fields, constants=constants, answer_pattern=answer_pattern, system=system, what=what, no_images=no_images,
        lacking=lacking,
    )  # fmt: skip
    prompts: dict[str, Prompt] = {}
    rows = load_rows(path, what, limit)
    for row in rows:
        prompt = read(row)
        prompts.setdefault(prompt.prompt_id, prompt)
    if len(prompts) < len(rows):
        log.warning("%s: dropped %d of %d rows, exact duplicates of others", path, len(rows) - len(prompts), len(rows))
    return list(prompts.values())


def prompt_reader(
    fields: Mapping[str, str] | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    answer_pattern: str | None = None,
    system: str | None = None,
    what: str = "data.prompts",
    no_images: str = "",
    lacking: Callable[[Prompt], str] = lambda _: "",
) -> Callable[[Row], Prompt]:
    """What makes a prompt of a row. Arguments as for `load_prompts`, and so are the errors of what is returned."""
    reader = _Reader(what, fields or {}, constants or {}, system)

    def read(row: Row) -> Prompt:
        prompt = _prompt(reader, row, answer_pattern)
        if no_images and prompt.images:
            raise reader.error(row, "images", no_images)
        if lack := lacking(prompt):
            raise DataError(f"{row.place}: {lack}")
        return prompt

    return read


def load_demonstrations(
    path: str,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    system: str | None = None,
    what: str = "data.demonstrations",
    no_images: str = "",
) -> list[Demonstration]:
    """Conversations to learn from: `messages` that end with the assistant's turn, or `prompt` and `completion`.

    Duplicates are kept: how often something is demonstrated is part of the data. Arguments as for `load_prompts`.

    Raises:
        DataError: one line with file, line and field of the first bad row.
    """
    reader = _Reader(what, fields or {}, constants or {}, system)
    seen: Counter[str] = Counter()
    demonstrations = []
    for row in load_rows(path, what, limit):
        images = reader.get(row, "images", _images) if no_images else None
        if images:
            raise reader.error(row, "images", no_images)
        messages, origin = reader.messages(row)
        if origin == "prompt":
            messages += reader.require(row, "completion", _turns("assistant"))
            origin = "completion"
        if messages[-1]["role"] != "assistant":
            problem = f"the last message is the {messages[-1]['role']}'s; a demonstration ends with the assistant's"
            raise reader.error(row, origin, problem)
        identity = content_id(messages, None, None)
        seen[identity] += 1
        demonstrations.append(
            Demonstration(
                row_id=identity if seen[identity] == 1 else f"{identity}-{seen[identity]}",
                messages=tuple(messages),
                capability=reader.get(row, "capability", _text) or "default",
                difficulty=reader.get(row, "difficulty", _whole_number),
                extra=reader.extra(row, DEMONSTRATION_FIELDS[origin]),
                file=row.file,
                line=row.line,
            )
        )
    return demonstrations


def _prompt(reader: _Reader, row: Row, answer_pattern: str | None) -> Prompt:
    messages, origin = reader.messages(row)
    if messages[-1]["role"] == "assistant":
        raise reader.error(row, origin, "the last message is the assistant's; a prompt ends with the user's")
    answer = reader.get(row, "answer", _answer)
    if answer is not None and answer_pattern is not None:
        found = re.search(answer_pattern, answer)
        if found is None or found[1] is None:
            problem = f"{short(answer)} does not match {reader.what}.answer_pattern={answer_pattern!r}"
            raise reader.error(row, "answer", problem)
        answer = found.group(1).strip()
    tests = reader.get(row, "tests", _tests) or ()
    images = reader.get(row, "images", _images) or ()
    # The same question about another image is another prompt.
    pictures = [{"role": "image", "content": hashlib.sha256(image.encode()).hexdigest()} for image in images]
    return Prompt(
        prompt_id=content_id([*messages, *pictures], answer, tests or None),
        messages=tuple(messages),
        capability=reader.get(row, "capability", _text) or "default",
        answer=answer,
        tests=tests,
        answer_format=reader.get(row, "format", _delimiters),
        difficulty=reader.get(row, "difficulty", _whole_number),
        instruction=reader.get(row, "instruction", _text),
        images=tuple(_beside(row.file, image) for image in images),
        modality="image" if images else "text",
        source=Path(row.file).name if Path(row.file).suffix in SUFFIXES else row.file,
        extra=reader.extra(row, {origin, *PROMPT_FIELDS}),
    )


class _Reader:
    """Takes our fields out of rows.

    Args:
        what: the setting that errors name, `data.prompts`.
        fields: our name → theirs.
        constants: our name → a value.
        system: a system instruction for rows that have none.
    """

    def __init__(self, what: str, fields: Mapping[str, str], constants: Mapping[str, Any], system: str | None) -> None:
        for kind, names in (("fields", fields), ("constants", constants)):
            for name in names:
                if name not in FIELDS:
                    raise DataError(f"{what}.{kind}.{name}: no field of ours; ours are {', '.join(FIELDS)}")
        self.what, self.fields, self.constants, self.system = what, fields, constants, system

    def error(self, row: Row, ours: str, problem: str) -> DataError:
        """`train.jsonl:17: field 'question': …`."""
        if ours in self.constants:
            return DataError(f"{self.what}.constants.{ours}: {problem}")
        return DataError(f"{row.place}: field '{self.fields.get(ours, ours)}': {problem}")

    def get(self, row: Row, ours: str, read: Callable[[Any], T]) -> T | None:
        """The value of our field; None if it is null, or if the row has none and no mapping says that it has.

        Raises:
            DataError: a field that the mapping names is missing, or its value is of another kind.
        """
        if ours in self.constants:
            value = self.constants[ours]
        else:
            theirs = self.fields.get(ours, ours)
            if theirs and theirs not in row.values and ours in self.fields:
                raise self._missing(row, f"no field '{theirs}'")
            value = row.values.get(theirs) if theirs else None
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            escape = (
                ""
                if ours in self.fields or ours in self.constants
                else (f"; if it means something else, set {self.what}.fields.{ours}=''")
            )
            raise self.error(row, ours, f"{error}{escape}") from None

    def require(self, row: Row, ours: str, read: Callable[[Any], T]) -> T:
        """As `get`, but a row without a value is an error."""
        value = self.get(row, ours, read)
        if value is not None:
            return value
        theirs = self.fields.get(ours, ours)
        if theirs in row.values:
            raise self.error(row, ours, "is null")
        raise self._missing(row, f"no field '{theirs or ours}'")

    def _missing(self, row: Row, problem: str) -> DataError:
        there = ", ".join(row.values)
        return DataError(f"{row.place}: {problem} (fields there: {there}); map it under {self.what}.fields")

    def messages(self, row: Row) -> tuple[list[Message], str]:
        """The conversation, and which field of ours it came from: `messages` or `prompt`."""
        names = [name for name in ("messages", "prompt") if self.fields.get(name, name)]
        use = next((name for name in names if name in self.fields), None)
        use = use or next((name for name in names if name in row.values), None)
        if use is None:
            raise self._missing(row, "no field 'messages' or 'prompt'")
        messages = list(self.require(row, use, _turns("user")))
        system = self.get(row, "system", _text) or self.system
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return messages, use

    def extra(self, row: Row, used: set[str]) -> dict[str, Any]:
        """What the row has beside the fields of ours that were `used`."""
        theirs = {self.fields.get(ours, ours) for ours in used if ours not in self.constants}
        others = {name: value for name, value in row.values.items() if name not in theirs}
        return others | {name: value for name, value in self.constants.items() if name not in used}


# Readers of one field: they return its value, or raise a ValueError that says what was expected.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {short(value)}")
    return value


def _answer(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a text or a number, found {short(value)}")
    return str(value)


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise ValueError(f"expected a whole number, found {short(value)}")
    return int(value)


def _tests(value: Any) -> tuple[Mapping[str, Any] | str, ...]:
    """A text is the source of tests."""
    tests = [value] if isinstance(value, str) else value
    if not isinstance(tests, list) or not any(all(isinstance(test, kind) for test in tests) for kind in (dict, str)):
        raise ValueError(f"expected a text, a list of texts or a list of mappings, found {short(value)}")
    try:
        json.dumps(tests)
    except TypeError as error:  # such as a time or bytes, of Parquet
        raise ValueError(f"expected what JSON knows: {error}") from None
    return tuple(tests)


def _delimiters(value: Any) -> tuple[str, str]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise ValueError(f"expected the two texts [left, right], found {short(value)}")
    return value[0], value[1]


def _images(value: Any) -> tuple[str, ...]:
    """Paths, addresses or `data:` URIs; also what `datasets` stores, a mapping with `bytes` and `path`."""
    images = []
    for image in value if isinstance(value, list) else [value]:
        if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
            images.append(f"data:image;base64,{base64.b64encode(image['bytes']).decode()}")
        elif isinstance(image, dict) and isinstance(image.get("path"), str):
            images.append(image["path"])
        elif isinstance(image, str) and image:
            images.append(image)
        else:
            raise ValueError(f"expected paths of images, found {short(image)}")
    return tuple(images)


def _turns(role: str) -> Callable[[Any], list[Message]]:
    """A reader of chat messages; a text is one message of `role`."""

    def read(value: Any) -> list[Message]:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("is empty")
            return [{"role": role, "content": value}]
        if not isinstance(value, list) or not value:
            raise ValueError(f"expected a text or a list of messages, found {short(value)}")
        return [_message(number, message) for number, message in enumerate(value, 1)]

    return read


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"message {number}: expected 'role' and 'content', found {short(value)}")
    message = {key: text for key, text in value.items() if text is not None}  # Parquet has null for an absent key
    for key in ("role", "content"):
        if key not in message:
            raise ValueError(f"message {number}: no '{key}' (there: {', '.join(message)})")
    for key, text in message.items():
        if not isinstance(text, str):
            raise ValueError(f"message {number}: '{key}': expected a text, found {short(text)}")
    return message


def _beside(file: str, image: str) -> str:
    """A relative path of an image is relative to the file that names it."""
    if ":" in image or Path(image).is_absolute() or not Path(file).is_file():
        return image
    return str(Path(file).parent / image)
