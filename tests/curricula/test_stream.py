"""What is read of a stream, and when."""

import datetime as dt
from collections.abc import Iterator

import pytest

from curricula.datasets import prompt_reader
from curricula.rows import Row
from curricula.stream import PromptStream
from rollouts.errors import DataError
from rollouts.types import Prompt
from tests.curricula.streams import asked, rows, stream


def numbers(found: list[Prompt]) -> list[int]:
    return [asked(prompt) for prompt in found]


def test_nothing_is_read_before_it_is_needed() -> None:
    read = []

    def source() -> Iterator[Row]:
        for row in rows()():
            read.append(row.line)
            yield row

    found = stream(source)
    assert read == []
    assert numbers(found.first(3, 10)) == [0, 1, 2]
    assert read == [1, 2, 3]
    assert (found.passes, found.position) == (0, 3)


def test_the_first_prompts_are_those_that_fit_each_content_once() -> None:
    def twice() -> Iterator[Row]:
        for row in rows(("math", "code"))():
            yield from (row, row)

    def fits(prompt: Prompt) -> bool:
        return asked(prompt) != 2

    assert numbers(stream(twice, fits).first(4, 100)) == [0, 1, 3, 4]
    assert numbers(stream(twice, fits).first(3, 100, ["math"])) == [0, 4, 6]


def test_a_stream_goes_on_behind_a_row() -> None:
    found = stream(rows(end=5))
    found.seek(2, 3)
    assert [found.read(), found.read(), found.read()][2] is None
    assert (found.passes, found.position) == (3, 0)
    first = found.read()
    assert first is not None
    assert asked(first) == 0  # from the start again


def test_a_place_behind_the_end_is_the_end() -> None:
    found = stream(rows(end=5))
    found.seek(0, 9)
    assert found.read() is None
    assert found.passes == 1


def test_a_source_without_a_prompt_is_an_error() -> None:
    with pytest.raises(DataError, match=r"numbers: no rows; set data.prompts.path to a source that has some"):
        stream(rows(end=0)).first(4, 10)
    with pytest.raises(DataError) as error:
        stream(rows(), lambda _: False).first(4, 10)
    assert str(error.value) == (
        "numbers: none of the 10 rows read is a prompt that leaves room for an answer within max_model_len"
    )
    with pytest.raises(DataError, match="none of the 10 rows read is a prompt of the capability code that leaves"):
        stream(rows()).first(4, 10, ["code"])


def test_a_prompt_is_what_a_checkpoint_makes_of_it() -> None:
    def source(values: dict[str, object]) -> PromptStream:
        return PromptStream("x", lambda: iter([Row(values, "x.parquet", 7)]), prompt_reader(), lambda _: True)

    found = source({"prompt": "a", "format": ("<", ">"), "range": (1, 2), "day": dt.date(2026, 1, 2)}).read()
    assert found is not None
    assert found.answer_format == ("<", ">")
    assert found.extra == {"range": [1, 2], "day": "2026-01-02"}
    with pytest.raises(DataError) as error:
        source({"prompt": "a", "module": pytest.raises}).read()
    assert str(error.value).startswith("x.parquet:7: a value that JSON has no form for (")
    assert str(error.value).endswith("leave that field out, or set data.prompts.window to null")
