"""The prompts of a stream that are held, and what becomes of them in a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from curricula import window
from curricula.rows import Row
from curricula.window import FILE, PromptWindow
from rollouts.errors import CheckpointError, DataError
from tests.curricula.streams import asked, rows, stream


def numbers(found: PromptWindow) -> list[int]:
    return [asked(prompt) for prompt in found.prompts]


def replaced(found: PromptWindow, row: int) -> int | None:
    prompt = found.replace(row)
    assert prompt is None or prompt is found.prompts[row]
    return None if prompt is None else asked(prompt)


def test_one_capability_has_the_whole_window() -> None:
    found = PromptWindow(stream(rows()), 8)
    assert numbers(found) == list(range(8))
    assert [replaced(found, row) for row in (3, 0, 3)] == [8, 9, 10]
    assert numbers(found) == [9, 1, 2, 10, 4, 5, 6, 7]
    assert len(found) == 8
    assert str(found) == "8 prompts (math 8)"


def test_each_capability_keeps_its_seats_and_none_that_is_read_is_lost() -> None:
    found = PromptWindow(stream(rows(("math", "code"))), 16)
    assert str(found) == "12 prompts (math 6, code 6)"
    assert numbers(found) == list(range(12))  # of the 16 that were read 4 wait
    math = [row for row, prompt in enumerate(found.prompts) if prompt.capability == "math"]
    code = [row for row, prompt in enumerate(found.prompts) if prompt.capability == "code"]
    assert [replaced(found, row) for row in [*math[:3], *code[:3]]] == [12, 14, 16, 13, 15, 17]
    assert [found.prompts[row].capability for row in math] == ["math"] * 6


def test_what_is_more_than_drawn_is_passed_over_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    found = PromptWindow(stream(rows(("math", "math", "math", "code"))), 16)
    code = next(row for row, prompt in enumerate(found.prompts) if prompt.capability == "code")
    assert [replaced(found, code) for _ in range(10)] == list(range(27, 67, 4))  # rows 3, 7, … are code
    assert len(found) <= 16
    (record,) = caplog.records
    assert record.message == (
        "numbers: more prompts of the capability 'math' than are drawn: some are passed over "
        "(rl.quotas sets the shares)"
    )


def test_weights_share_the_seats_and_other_capabilities_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    found = PromptWindow(stream(rows(("math", "code", "chat"))), 16, {"code": 3.0, "math": 1.0})
    assert str(found) == "12 prompts (code 9, math 3)"
    assert "prompts of the capability 'chat' are left out" in caplog.text
    with pytest.raises(DataError, match=r"numbers: no prompt of the capability 'poem' among the first 10,0\d\d rows"):
        PromptWindow(stream(rows()), 16, {"math": 1.0, "poem": 1.0})


def test_a_source_that_ends_is_read_again() -> None:
    found = PromptWindow(stream(rows(end=6)), 4)
    assert [replaced(found, row) for row in (0, 1, 2, 3, 0)] == [4, 5, 0, 1, 2]


def test_a_source_within_the_window_is_held_whole(caplog: pytest.LogCaptureFixture) -> None:
    found = PromptWindow(stream(rows(("math", "code"), end=7)), 64)
    assert sorted(numbers(found)) == list(range(7))
    assert [replaced(found, row) for row in range(7)] == [None] * 7
    assert "no further prompt of the capability 'math' is found" in caplog.text


def test_a_generator_that_repeats_itself_is_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "PATIENCE", 50)
    read = []

    def source() -> Iterator[Row]:
        for row in rows()():
            read.append(row)
            yield Row({"prompt": str(row.line % 5)}, "numbers", row.line)

    found = PromptWindow(stream(source), 8)
    assert sorted(numbers(found)) == [0, 1, 2, 3, 4]
    count = len(read)
    assert [replaced(found, 0), replaced(found, 1)] == [None, None]
    assert len(read) == count  # it is looked for no further


@pytest.mark.parametrize("end", [None, 50, 17])
def test_a_restored_window_goes_on_as_one_that_was_not(tmp_path: Path, end: int | None) -> None:
    source = rows(("math", "math", "code"), end)
    one = PromptWindow(stream(source), 16)
    for row in [*range(10), *range(10)]:
        one.replace(row)
    one.save(tmp_path)
    other = PromptWindow(stream(source), 16, checkpoint=tmp_path)
    assert other.prompts == one.prompts
    assert len(other) == len(one)
    order = [3, 1, 10, 3, 0, 7, 9, 2] * 5
    expected = [replaced(one, row) for row in order]
    assert [replaced(other, row) for row in order] == expected
    assert other.prompts == one.prompts


def test_another_source_or_size_on_resume(tmp_path: Path) -> None:
    one = PromptWindow(stream(rows(("math", "code"))), 16)
    one.save(tmp_path)
    larger = PromptWindow(stream(rows(("math", "code"))), 32, checkpoint=tmp_path)
    assert numbers(larger)[:12] == numbers(one)
    assert sorted(numbers(larger)) == list(range(24))
    smaller = PromptWindow(stream(rows(("math", "code"))), 8, checkpoint=tmp_path)
    assert numbers(smaller) == [0, 1, 2, 3, 4, 5]
    assert len(smaller) == 8
    other = stream(rows())
    other.name = "others"
    assert numbers(PromptWindow(other, 4, checkpoint=tmp_path)) == [0, 1, 2, 3]


def test_a_source_that_has_grown_is_looked_at_again_on_resume(tmp_path: Path) -> None:
    PromptWindow(stream(rows(end=5)), 8).save(tmp_path)
    assert sorted(numbers(PromptWindow(stream(rows(end=7)), 8, checkpoint=tmp_path))) == list(range(7))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    PromptWindow(stream(rows()), 4).save(tmp_path)
    text = (tmp_path / FILE).read_text()
    for damaged in ("", "{}", text[:-9]):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(CheckpointError, match=r"window.jsonl: no window on a stream \(.*\); choose another check"):
            PromptWindow(stream(rows()), 4, checkpoint=tmp_path)
