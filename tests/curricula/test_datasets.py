"""What rows of each kind of file become, and the exact line for each kind of bad row."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curricula.datasets import Demonstration, Row, iterate_rows, load_demonstrations, load_prompts, load_rows
from rollouts.errors import DataError
from rollouts.types import Prompt, content_id

GSM8K = {"question": "Two and 3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}
CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "47+38"}]
TINY = {
    "messages": CHAT,
    "answer": "85",
    "tests": None,
    "format": ["<ans>", "</ans>"],
    "capability": "math",
    "difficulty": 2,
    "instruction": "ans-0",
}


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows, name="x.jsonl"):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return name

    return write_rows


def line_of(load, *args, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Rows


def test_jsonl_rows_know_their_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": "é\u2028"}\n', encoding="utf-8")
    assert load_rows("x.jsonl") == [Row({"a": 1}, "x.jsonl", 1), Row({"a": "é\u2028"}, "x.jsonl", 3)]
    assert load_rows("x.jsonl")[1].place == "x.jsonl:3"


def test_parquet_rows_are_numbered(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"a": index, "b": None} for index in range(2500)]), tmp_path / "x.parquet")
    rows = load_rows("x.parquet")
    assert len(rows) == 2500
    assert rows[2400] == Row({"a": 2400, "b": None}, "x.parquet", 2401)


def test_a_directory_is_read_in_the_order_of_names(tmp_path, write):
    (tmp_path / "d").mkdir()
    write({"a": 3}, name="d/2.jsonl")
    write({"a": 9}, name="d/notes.json")
    pq.write_table(pa.Table.from_pylist([{"a": 1}, {"a": 2}]), tmp_path / "d" / "1.parquet")
    expected = [Row({"a": 1}, "d/1.parquet", 1), Row({"a": 2}, "d/1.parquet", 2), Row({"a": 3}, "d/2.jsonl", 1)]
    assert load_rows("d") == expected


def test_a_limit_reads_no_further(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2}\nnot json\n')
    assert [row.values["a"] for row in load_rows("x.jsonl", limit=2)] == [1, 2]


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: the call, and a data set with an image that must not be decoded."""
    calls = []

    def load_dataset(name, config, split, streaming):
        calls.append((name, config, split))
        if name == "no/net":
            raise ConnectionError("Couldn't reach 'no/net' on the Hub\nand more lines")
        features = datasets.Features({"q": datasets.Value("string"), "image": datasets.Image()})
        found = datasets.Dataset.from_dict({"q": ["what?"], "image": [{"bytes": b"png", "path": None}]}, features)
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_names_of_the_hub(hub):
    rows = [Row({"q": "what?", "image": {"bytes": b"png", "path": None}}, "o/n/main:test", 1)]
    assert load_rows("o/n/main:test") == rows
    load_rows("o/n")
    load_rows("squad:train[:10]")
    assert hub == [("o/n", "main", "test"), ("o/n", None, "train"), ("squad", None, "train[:10]")]


def test_a_streamed_name_gives_the_same_rows(hub):
    assert list(iterate_rows("o/n:test", streaming=True)) == load_rows("o/n:test")


def test_an_unreachable_hub(hub):
    assert line_of(load_rows, "no/net", "data.prompts") == (
        "no/net: no file, and no data set that can be loaded (ConnectionError: Couldn't reach 'no/net' on the Hub); "
        "set data.prompts.path"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "x.jsonl: no rows; set data.path to a file that has some"),
        (b"\n\n", "x.jsonl: no rows; set data.path to a file that has some"),
        (b'{"a": 1}\n{"a": 1,}\n', "x.jsonl:2: not JSON: "),
        (b'{"a": 1}\n\n[1]\n', "x.jsonl:3: expected a JSON object on each line, found [1]"),
        (b'{"a": "\\ud83d\\ude00"}\n{"a": ["\\uD83D"]}\n', "x.jsonl:2: '\\ud83d' is half of a character (a lone"),
    ],
)
def test_a_bad_file(tmp_path, content, line):
    (tmp_path / "x.jsonl").write_bytes(content)
    # What json says of a trailing comma differs between Python versions.
    assert line_of(load_rows, "x.jsonl").startswith(line)


def test_files_that_are_not_what_their_name_says(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    assert line_of(load_rows, "x.jsonl") == "x.jsonl:1: not UTF-8 text"
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n' + b'{"a": 1}\n' * 48 + b'{"a": "\xff"}\n')
    assert line_of(load_rows, "x.jsonl") == "x.jsonl:50: not UTF-8 text"
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}\n")
    assert line_of(load_rows, "x.jsonl").startswith("x.jsonl:2: cannot be read: Exceeds the limit")
    (tmp_path / "x.jsonl").write_bytes(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    assert line_of(load_rows, "x.jsonl").startswith("x.jsonl:1: cannot be read: maximum recursion")
    (tmp_path / "x.parquet").write_bytes(b"no parquet here")
    assert line_of(load_rows, "x.parquet").startswith("x.parquet: not Parquet: Parquet magic bytes not found in footer")


def test_a_missing_file_or_directory(tmp_path):
    assert line_of(load_rows, "no.jsonl", "data.prompts") == "no.jsonl: no such file; set data.prompts.path"
    assert line_of(load_rows, "./no", "data.prompts") == "./no: no such file; set data.prompts.path"
    assert line_of(load_rows, "", "data.prompts") == "no data: set data.prompts.path"
    (tmp_path / "d").mkdir()
    expected = "d: no .jsonl or .parquet file in this directory; set data.prompts.path"
    assert line_of(load_rows, "d", "data.prompts") == expected


# Prompts


def test_a_row_of_ours_needs_no_mapping(write):
    (prompt,) = load_prompts(write({**TINY, "note": "kept"}))
    assert prompt == Prompt(
        prompt_id=content_id(CHAT, "85", None),
        messages=tuple(CHAT),
        capability="math",
        answer="85",
        answer_format=("<ans>", "</ans>"),
        difficulty=2,
        instruction="ans-0",
        source="x.jsonl",
        extra={"note": "kept"},
    )


def test_hidden_tests(write):
    tests = [{"args": [1], "expected": 2}]
    (prompt,) = load_prompts(write({"prompt": "f", "tests": tests, "answer": None}))
    assert (prompt.tests, prompt.answer) == (tuple(tests), None)
    assert prompt.prompt_id == content_id([{"role": "user", "content": "f"}], None, tests)


def test_gsm8k_as_published(write):
    (prompt,) = load_prompts(
        write(GSM8K),
        {"prompt": "question", "answer": "answer"},
        constants={"capability": "math", "format": ["####", ""], "instruction": "hash"},
        answer_pattern="#### (.+)",
        system="Write #### before the answer.",
    )
    assert prompt.messages == (
        {"role": "system", "content": "Write #### before the answer."},
        {"role": "user", "content": "Two and 3?"},
    )
    assert (prompt.answer, prompt.capability, prompt.answer_format) == ("5", "math", ("####", ""))
    assert (prompt.instruction, prompt.difficulty, prompt.modality, prompt.extra) == ("hash", None, "text", {})


def test_a_row_keeps_its_own_system_instruction(write):
    name = write(TINY, {"prompt": "a", "system": "mine"}, {"prompt": "b"})
    assert [prompt.messages[0]["content"] for prompt in load_prompts(name, system="other")] == ["S", "mine", "other"]


def test_numbers_become_texts_and_absent_fields_defaults(write):
    first, second = load_prompts(write({"prompt": "a", "answer": 85, "difficulty": 3.0}, {"prompt": "b"}))
    assert (first.answer, first.difficulty) == ("85", 3)
    assert (second.answer, second.difficulty, second.capability, second.answer_format) == (None, None, "default", None)


def test_an_empty_name_leaves_a_field_alone(write):
    (prompt,) = load_prompts(write({"prompt": "a", "difficulty": "hard"}), {"difficulty": ""})
    assert (prompt.difficulty, prompt.extra) == (None, {"difficulty": "hard"})


def test_exact_duplicates_are_dropped_and_counted(write, caplog):
    name = write(TINY, {"prompt": "b"}, {**TINY, "difficulty": 5}, {**TINY, "answer": "86"})
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(name)
    assert [(prompt.answer, prompt.difficulty) for prompt in prompts] == [("85", 2), (None, None), ("86", 2)]
    assert caplog.messages == ["x.jsonl: dropped 1 of 4 rows, exact duplicates of others"]


def test_images(tmp_path):
    rows = [
        {"q": "what?", "pictures": ["a.png", "https://h.example/b.png"]},
        {"q": "what?", "pictures": ["c.png"]},
        {"q": "what?", "pictures": []},
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, second, third = load_prompts("d/x.jsonl", {"prompt": "q", "images": "pictures"})
    assert (first.images, first.modality) == (("d/a.png", "https://h.example/b.png"), "image")
    assert (second.images, third.images, third.modality) == (("d/c.png",), (), "text")
    assert len({first.prompt_id, second.prompt_id, third.prompt_id}) == 3


def test_images_of_the_hub(hub):
    (prompt,) = load_prompts("o/n", {"prompt": "q", "images": "image"})
    assert (prompt.images, prompt.modality, prompt.source) == (("data:image;base64,cG5n",), "image", "o/n")


def test_null_keys_of_parquet_messages(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a", "name": None}]}]
    pq.write_table(
        pa.Table.from_pylist(
            rows,
            pa.schema([("messages", pa.list_(pa.struct([(key, pa.string()) for key in ("role", "content", "name")])))]),
        ),
        tmp_path / "x.parquet",
    )
    assert load_prompts("x.parquet")[0].messages == ({"role": "user", "content": "a"},)


@pytest.mark.parametrize(
    ("row", "fields", "line"),
    [
        (
            {"q": "a", "b": 1},
            {"prompt": "question"},
            "x.jsonl:2: no field 'question' (fields there: q, b); map it under data.prompts.fields",
        ),
        (
            {"q": "a"},
            {},
            "x.jsonl:2: no field 'messages' or 'prompt' (fields there: q); map it under data.prompts.fields",
        ),
        (
            {"prompt": "a"},
            {"capability": "topic"},
            "x.jsonl:2: no field 'topic' (fields there: prompt); map it under data.prompts.fields",
        ),
        ({"q": None}, {"prompt": "q"}, "x.jsonl:2: field 'q': is null"),
        ({"q": " "}, {"prompt": "q"}, "x.jsonl:2: field 'q': is empty"),
        ({"q": 3}, {"prompt": "q"}, "x.jsonl:2: field 'q': expected a text or a list of messages, found 3"),
        ({"c": []}, {"messages": "c"}, "x.jsonl:2: field 'c': expected a text or a list of messages, found []"),
        (
            {"c": [{"role": "user", "content": "a"}, "b"]},
            {"messages": "c"},
            "x.jsonl:2: field 'c': message 2: expected 'role' and 'content', found 'b'",
        ),
        (
            {"c": [{"from": "user", "content": "a"}]},
            {"messages": "c"},
            "x.jsonl:2: field 'c': message 1: no 'role' (there: from, content)",
        ),
        (
            {"c": [{"role": "user", "content": ["a"]}]},
            {"messages": "c"},
            "x.jsonl:2: field 'c': message 1: 'content': expected a text, found [\"a\"]",
        ),
        (
            {"c": [{"role": "assistant", "content": "a"}]},
            {"messages": "c"},
            "x.jsonl:2: field 'c': the last message is the assistant's; a prompt ends with the user's",
        ),
        (
            {"prompt": "a", "level": 1.5},
            {"difficulty": "level"},
            "x.jsonl:2: field 'level': expected a whole number, found 1.5",
        ),
        (
            {"prompt": "a", "level": float("inf")},
            {"difficulty": "level"},
            "x.jsonl:2: field 'level': expected a whole number, found Infinity",
        ),
        (
            {"prompt": "a", "x": ["a"]},
            {"format": "x"},
            "x.jsonl:2: field 'x': expected the two texts [left, right], found [\"a\"]",
        ),
        ({"prompt": "a", "x": True}, {"answer": "x"}, "x.jsonl:2: field 'x': expected a text or a number, found true"),
        (
            {"prompt": "a", "x": 3},
            {"tests": "x"},
            "x.jsonl:2: field 'x': expected a text, a list of texts or a list of mappings, found 3",
        ),
        ({"prompt": "a", "x": [3]}, {"images": "x"}, "x.jsonl:2: field 'x': expected paths of images, found 3"),
    ],
)
def test_a_bad_prompt_row_is_one_line(tmp_path, row, fields, line):
    (tmp_path / "x.jsonl").write_text(f"\n{json.dumps(row)}\n")
    assert line_of(load_prompts, "x.jsonl", fields) == line


def test_a_field_of_our_name_that_may_mean_something_else(write):
    assert line_of(load_prompts, write({"prompt": "a", "difficulty": "hard"})) == (
        "x.jsonl:1: field 'difficulty': expected a whole number, found 'hard'; if it means something else, "
        "set data.prompts.fields.difficulty=''"
    )


def test_an_answer_without_the_pattern(write):
    line = line_of(
        load_prompts, write(GSM8K, {**GSM8K, "answer": "five"}), {"prompt": "question"}, answer_pattern="#### (.+)"
    )
    assert line == "x.jsonl:2: field 'answer': 'five' does not match data.prompts.answer_pattern='#### (.+)'"
    rows = write({"prompt": "a", "answer": "five"})
    assert "'five' does not match" in line_of(load_prompts, rows, answer_pattern="five(,.+)?")


def test_a_function_that_gives_no_rows(tmp_path, monkeypatch):
    (tmp_path / "my_rows.py").write_text("def none(): pass\ndef some(path): return [{}]")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("none", "some"):
        line = line_of(load_rows, f"my_rows:{name}", "data.prompts")
        assert line.startswith(f"my_rows:{name}: expected a function that takes nothing and gives rows: ")


def test_bad_constants_and_names_of_ours(write):
    name = write({"prompt": "a"})
    assert line_of(load_prompts, name, constants={"format": "####"}) == (
        "data.prompts.constants.format: expected the two texts [left, right], found '####'"
    )
    ours = "messages, prompt, completion, system, answer, tests, format, capability, difficulty, instruction, images"
    assert (
        line_of(load_prompts, name, {"promt": "a"}) == f"data.prompts.fields.promt: no field of ours; ours are {ours}"
    )


# Demonstrations


def test_a_conversation(write):
    turns = [*CHAT, {"role": "assistant", "content": "85"}]
    row = {"messages": turns, "capability": "math", "difficulty": 2, "style": "terse"}
    first, second = load_demonstrations(write(row, row))
    identity = content_id(turns, None, None)
    assert first == Demonstration(identity, tuple(turns), "math", 2, {"style": "terse"}, "x.jsonl", 1)
    assert second == Demonstration(f"{identity}-2", tuple(turns), "math", 2, {"style": "terse"}, "x.jsonl", 2)


def test_gsm8k_as_demonstrations(write):
    (row,) = load_demonstrations(
        write({**GSM8K, "id": 7}),
        {"prompt": "question", "completion": "answer"},
        constants={"capability": "math"},
        system="S",
    )
    assert row.messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Two and 3?"},
        {"role": "assistant", "content": GSM8K["answer"]},
    )
    assert (row.capability, row.extra) == ("math", {"id": 7})


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"messages": CHAT},
            "x.jsonl:1: field 'messages': the last message is the user's; a demonstration ends with the assistant's",
        ),
        (
            {"prompt": "a", "b": "c"},
            "x.jsonl:1: no field 'completion' (fields there: prompt, b); map it under data.demonstrations.fields",
        ),
        ({"prompt": "a", "completion": None}, "x.jsonl:1: field 'completion': is null"),
    ],
)
def test_a_bad_demonstration_is_one_line(write, row, line):
    assert line_of(load_demonstrations, write(row)) == line
