"""Which conversations SFT trains on, and as which tokens."""

from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from posttrain import data
from posttrain.config import load_config, resolve_model
from posttrain.rundir import RunDir
from posttrain.sft import EVALUATED, evaluation_rows, tokenize, training_rows
from rollouts.errors import CheckpointError, DataError
from rollouts.recorder import write_rows
from rollouts.renderer import Renderer

OFF = load_config("tiny", ["prune.enabled=false", "data.demonstrations.limit=300"])


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(resolve_model("tiny:base"))


def test_what_is_trained_on_is_known_by_its_place(tmp_path: Path) -> None:
    rows = data.demonstrations(OFF)
    found = training_rows(OFF, RunDir(tmp_path / "all", OFF), rows)
    assert [messages for _, messages in found] == [row.messages for row in rows]
    assert found[16][0].endswith("sft.jsonl:17")
    on = load_config("tiny", ["data.demonstrations.limit=300"])
    run = RunDir(tmp_path / "pruned", on)
    with pytest.raises(CheckpointError, match=r"kept\.parquet: missing; run `posttrain prune`"):
        training_rows(on, run, rows)
    kept = [{"row_id": rows[7].row_id, "messages": "[]"}, {"row_id": "gone since", "messages": "[]"}]
    write_rows(run.stage("sft") / "kept.parquet", kept)
    places = [place for place, _ in training_rows(on, run, rows)]
    assert places[0].endswith("sft.jsonl:8")
    assert places[1].endswith("kept.parquet")


def test_what_is_evaluated_does_not_depend_on_what_was_kept() -> None:
    rows = data.demonstrations(OFF)
    found = evaluation_rows(rows)
    assert len(found) == EVALUATED
    assert found == evaluation_rows(rows)
    assert {place for place, _ in found} < {row.place for row in rows}


def test_long_conversations_are_left_out_and_not_cut(tmp_path: Path, renderer: Renderer) -> None:
    short, long = (
        [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": text}] for text in ("2", "2" * 40)
    )
    ids, labels = renderer.labelled(short)
    found = tokenize(
        [("a:1", short), ("a:2", long), ("a:3", short)], renderer, len(ids), tmp_path / "x [1]" / "t.parquet"
    )
    assert (found.rows, found.tokens, found.assistant_tokens) == (2, 2 * len(ids), 4)  # "2" and the end of the turn
    assert read_table(found.path).to_pylist() == [{"input_ids": ids, "labels": labels}] * 2
    assert tokenize([("a:1", long)], renderer, len(ids), tmp_path / "none.parquet").rows == 0


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path, renderer: Renderer) -> None:
    strict = Renderer(resolve_model("tiny:base"))
    strict.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    )
    rows = [("a.jsonl:1", [{"role": "user", "content": "1"}]), ("a.jsonl:2", [{"role": "system", "content": "1"}])]
    with pytest.raises(
        DataError, match=r"^a\.jsonl:2: .*: its chat template refuses turns of system: no system turns$"
    ):
        tokenize(rows, strict, 100, tmp_path / "t.parquet")
