"""What `posttrain rollouts` prints."""

import re
from pathlib import Path

import pytest

from posttrain.transcripts import print_transcripts
from rollouts.errors import DataError
from tests.posttrain.lineages import group, write_checkpoint, write_shards


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose newest shard has no rollout of math."""
    first, second = [group(1)], [group(2), group(3, "code", [True])]
    write_checkpoint(tmp_path, 3, write_shards(tmp_path, first, second, [group(4, "code", [True])]))
    return tmp_path


def drawn(run: Path, capsys: pytest.CaptureFixture[str], **kind: object) -> list[str]:
    arguments = {"count": 10, "capability": None, "unsolved": False} | kind
    print_transcripts(run, **arguments)  # type: ignore[arg-type]
    return re.findall(r"draw (\S+)", capsys.readouterr().out)


def test_older_shards_are_searched_until_there_are_enough(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drawn(run, capsys) == ["1.0", "1.1", "2.0", "2.1", "3.0", "4.0"]
    assert drawn(run, capsys, count=2) == ["3.0", "4.0"]
    assert drawn(run, capsys, count=3, capability="math") == ["1.1", "2.0", "2.1"]
    assert drawn(run, capsys, unsolved=True) == ["1.1", "2.1"]


def test_nothing_of_the_kind_is_an_error(run: Path) -> None:
    with pytest.raises(DataError, match="no rollout is like that"):
        print_transcripts(run, 10, "reasoning", False)


def test_every_turn_of_a_conversation_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = group(1, "math", [True])
    talk.rollouts[0].text = "85"
    talk.rollouts[0].turns = [
        {"role": "assistant", "content": "47+38=86"},
        {"role": "user", "content": "[47+38]=85"},
        {"role": "assistant", "content": "85"},
    ]
    write_checkpoint(tmp_path, 1, write_shards(tmp_path, [talk]))
    print_transcripts(tmp_path, 1, None, False)
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        "user: ?", "assistant: 47+38=86", "user: [47+38]=85", "assistant: 85", "solved  reward 1  stop  ",
    ]  # fmt: skip
