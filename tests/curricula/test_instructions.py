"""Pools of system instructions: which one a prompt is asked under, and how they are read."""

import json
from collections import Counter
from pathlib import Path

import pytest

from curricula.instructions import Instruction, InstructionPools, load_instructions
from posttrain.config import resolve_data
from posttrain.tiny.writing import HELDOUT_INSTRUCTIONS, TRAIN_INSTRUCTIONS
from rollouts.errors import DataError
from rollouts.types import Prompt

SHORT = Instruction("short", "Only the answer.")
TAGS = Instruction("tags", "Put it in <a></a>.", ("<a>", "</a>"))
HELD_OUT = Instruction("arrow", "Mark it with =>.", ("=>", ""), train=False)
PROMPT = Prompt(
    "9f", ({"role": "system", "content": "Use Answer:."}, {"role": "user", "content": "2+2"}), "math", "4",
    answer_format=("Answer:", ""), instruction="own",
)  # fmt: skip


def pools(seed: int = 0) -> InstructionPools:
    return InstructionPools({"math": [SHORT, TAGS, HELD_OUT]}, seed)


def test_an_instruction_takes_the_place_of_the_prompts_own() -> None:
    asked = TAGS.ask(PROMPT)
    assert asked.messages == ({"role": "system", "content": "Put it in <a></a>."}, PROMPT.messages[1])
    assert (asked.answer_format, asked.instruction, asked.instruction_trained) == (("<a>", "</a>"), "tags", True)
    assert (asked.prompt_id, asked.answer, asked.capability) == ("9f", "4", "math")  # the statistics are the row's
    assert SHORT.ask(PROMPT).answer_format == ("Answer:", "")
    assert HELD_OUT.ask(PROMPT).instruction_trained is False
    without = Prompt("1", ({"role": "user", "content": "2+2"},), "math")
    assert SHORT.ask(without).messages == ({"role": "system", "content": "Only the answer."}, without.messages[0])


def test_draws_are_asked_under_each_trained_instruction_alike_and_no_other() -> None:
    counts = Counter(pools().for_draw(PROMPT, draw_id).instruction for draw_id in range(2000))
    assert set(counts) == {"short", "tags"}
    assert abs(counts["short"] - 1000) < 100  # 4.5 standard deviations


def test_seed_and_draw_id_decide() -> None:
    asked = [pools().for_draw(PROMPT, draw_id).instruction for draw_id in range(50)]
    assert [pools().for_draw(PROMPT, draw_id).instruction for draw_id in range(49, -1, -1)] == asked[::-1]
    assert [pools(seed=1).for_draw(PROMPT, draw_id).instruction for draw_id in range(50)] != asked


def test_evaluations_ask_under_all_of_them_and_always_the_same() -> None:
    prompts = [Prompt(str(index), PROMPT.messages, "math") for index in range(300)]
    asked = [pools().for_evaluation(prompt) for prompt in prompts]
    assert [pools(seed=1).for_evaluation(prompt) for prompt in prompts] == asked
    counts = Counter(prompt.instruction for prompt in asked)
    assert min(counts[name] for name in ("short", "tags", "arrow")) > 60
    assert all(prompt.instruction_trained == (prompt.instruction != "arrow") for prompt in asked)


def test_a_capability_without_a_pool_keeps_its_own() -> None:
    other = Prompt("1", PROMPT.messages, "code", instruction="own")
    assert pools().for_draw(other, 3) is other
    assert pools().for_evaluation(other) is other
    assert InstructionPools().for_draw(PROMPT, 3) is PROMPT
    assert other.instruction_trained is None


def test_a_recorded_draw_is_asked_as_it_was() -> None:
    assert pools().as_drawn(PROMPT, "tags") == TAGS.ask(PROMPT)
    assert pools().as_drawn(PROMPT, "own") is PROMPT
    assert pools().as_drawn(PROMPT, "gone") is None
    held_out = next(each for each in pools().of(PROMPT.capability) if not each.train)
    assert pools().as_drawn(PROMPT, held_out.instruction_id) == held_out.ask(PROMPT)
    assert pools().as_drawn(PROMPT, held_out.instruction_id, trained=True) is None
    assert InstructionPools().as_drawn(PROMPT, "own") is PROMPT


# ------------------------------------------------------------------------------------------------------------- files


def test_the_tiny_worlds_pools() -> None:
    found = load_instructions(resolve_data("tiny:instructions"))
    assert list(found) == ["math", "reasoning", "code"]
    for pool in found.values():
        assert [(each.instruction_id, each.text, each.answer_format) for each in pool] == [
            (each.instruction_id, each.text, (each.left, each.right))
            for each in TRAIN_INSTRUCTIONS + HELDOUT_INSTRUCTIONS
        ]
        assert [each.train for each in pool] == [True] * len(TRAIN_INSTRUCTIONS) + [False] * len(HELDOUT_INSTRUCTIONS)


def test_what_a_row_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_text('{"id": "a", "text": "Answer.", "format": null}\n')
    assert load_instructions(str(tmp_path / "i.jsonl")) == {"default": [Instruction("a", "Answer.")]}


GOOD = {"capability": "math", "id": "a", "text": "Answer."}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"id": "b"}, "i.jsonl:2: no field 'text' (fields there: id)"),
        (GOOD | {"id": None}, "i.jsonl:2: no field 'id' (fields there: capability, id, text)"),
        (GOOD | {"text": " "}, "i.jsonl:2: field 'text': expected a text, found ' '"),
        (GOOD | {"id": 7}, "i.jsonl:2: field 'id': expected a text, found 7"),
        (GOOD | {"format": "=>"}, "i.jsonl:2: field 'format': expected the two texts [left, right], found '=>'"),
        (GOOD | {"format": [""]}, "i.jsonl:2: field 'format': expected the two texts [left, right], found [\"\"]"),
        (GOOD | {"train": "no"}, "i.jsonl:2: field 'train': expected true or false, found 'no'"),
        (GOOD | {"trian": False}, "i.jsonl:2: field 'trian': unknown; known are capability, id, text, format, train"),
        (GOOD, "i.jsonl:2: field 'id': 'a' is in the pool already"),
        (
            GOOD | {"capability": "code", "train": False},
            "i.jsonl: capability 'code' has no instruction but held-out ones; add one to train with",
        ),
    ],
)  # fmt: skip
def test_a_bad_row(row: dict, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("i.jsonl").write_text(f"{json.dumps(GOOD)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError) as error:
        load_instructions("i.jsonl")
    assert str(error.value) == line
