"""Words left out of a system instruction."""

import random

import pytest

from curricula.wordings import drop_words
from rollouts.types import Prompt


def prompt(system: str, delimiters: tuple[str, str] | None = ("<ans>", "</ans>")) -> Prompt:
    messages = ({"role": "system", "content": system}, {"role": "user", "content": "47+38"})
    return Prompt("p", messages, answer="85", answer_format=delimiters)


@pytest.mark.parametrize(
    ("system", "delimiters"),
    [
        ("Give the answer as <ans></ans>.", ("<ans>", "</ans>")),
        ("Mark the answer using =>.", ("=>", "")),
        ("End with 'Final answer:'.", ("Final answer:", "")),
    ],
)
def test_one_or_two_words_go_and_the_format_stays(system: str, delimiters: tuple[str, str]) -> None:
    before, rng = prompt(system, delimiters), random.Random(0)
    seen = set()
    for _ in range(200):
        after = drop_words(before, 2, rng)
        text = after.messages[0]["content"]
        missing = len(system.split()) - len(text.split())
        assert missing in (1, 2)
        assert all(delimiter in text for delimiter in delimiters)
        assert (after.messages[1], after.answer, after.answer_format) == (before.messages[1], "85", delimiters)
        assert after.prompt_id != "p"
        seen.add((text, after.prompt_id))
    assert len(seen) > 2
    assert len({text for text, _ in seen}) == len({prompt_id for _, prompt_id in seen}) == len(seen)


@pytest.mark.parametrize("system", ["<ans></ans>.", "answer"])
def test_without_a_word_to_spare_nothing_changes(system: str) -> None:
    assert drop_words(prompt(system), 2, random.Random(0)) == prompt(system)


def test_without_an_instruction_or_a_number_nothing_changes() -> None:
    bare = Prompt("p", ({"role": "user", "content": "say it in ten words"},))
    assert drop_words(bare, 2, random.Random(0)) == bare
    assert drop_words(prompt("Give the answer as <ans></ans>."), 0, random.Random(0)).prompt_id == "p"


def test_an_instruction_keeps_a_word() -> None:
    for seed in range(50):
        after = drop_words(prompt("Be brief now.", None), 9, random.Random(seed))
        assert after.messages[0]["content"]
