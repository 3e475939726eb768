"""The tiny world's chat: what is asked, how its writers answer, and what its judge makes of that."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.config import load_config, resolve_data, resolve_model
from posttrain.tiny import chat
from rollouts.renderer import Renderer
from rollouts.types import Prompt


def questions(rows):
    return [row["messages"][0]["content"] for row in rows if row["capability"] == chat.CAPABILITY]


def test_held_out_questions_are_nowhere_else() -> None:
    held = set(questions(chat.heldout()))
    assert len(held) == chat.HELD_OUT
    others = [questions(chat.prompts()), questions(chat.demonstrations())]
    others.append([question for question, *_ in itertools.islice(chat.judged("0/0"), 2000)])
    assert [len(each) for each in others] == [chat.PROMPTS, chat.DEMONSTRATIONS, 2000]
    for each in others:
        assert held.isdisjoint(each)


def test_the_other_capabilities_are_there_too() -> None:
    counts = Counter(row["capability"] for row in chat.demonstrations())
    assert set(counts) == {"chat", "math", "reasoning", "code"}
    assert counts["chat"] == sum(counts.values()) * 2 / 3
    assert list(chat.prompts()) == list(chat.prompts())  # so that a run can be resumed


@pytest.mark.parametrize("care", [chat.DEMONSTRATED, chat.JUDGED])
def test_an_answer_is_good_as_often_as_its_writers_care(care: chat.Care) -> None:
    rng = random.Random(1)
    drawn = [chat.draw_chat(rng, 2) for _ in range(4000)]
    written = [chat.write_answer(rng, each, care) for each in drawn]
    good = [each[1] for each in written]
    expected = (1 - care.misses_manner) * (1 - care.wrong_place) * (1 - care.spoils)
    assert all(chat.is_good(each.question, answer) == good for each, (answer, good) in zip(drawn, written, strict=True))
    assert sum(good) / len(good) == pytest.approx(expected, abs=0.03)


def test_a_careful_writer_names_the_place_in_the_manner() -> None:
    rng, careful = random.Random(2), chat.Care(0, 0, 0)
    for level in chat.LEVELS:
        asked = chat.draw_chat(rng, level)
        answer, good = chat.write_answer(rng, asked, careful)
        assert good
        prompt = Prompt("p", (), answer=asked.places[0])
        assert chat.names_place(prompt, answer)
        assert not chat.names_place(prompt, f"{answer} {chat.PLACES[0]} {chat.PLACES[1]}")
        assert chat.is_good(asked.question, answer)
        assert not chat.is_good(asked.question, f"{answer} {answer}")
        assert asked.places[0] in answer.lower()
        assert asked.question.startswith(f"{asked.manner.ask}: ")
        assert asked.question.count(" is ") == level + 1


def test_the_judge_tells_answers_apart_as_their_writers_would() -> None:
    """On answers that it has not seen. What it misses is nearly always a wrong place."""
    torch.set_num_threads(1)
    config = load_config("tiny-chat")
    assert config.rubric is not None
    directory = resolve_model(config.rubric.model or "")
    renderer, judge = Renderer(directory), AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    template = Path(resolve_data("tiny:chat-template")).read_text().rstrip("\n")
    right, examples = 0, list(itertools.islice(chat.judged("unseen"), 200))
    first = {}
    for word in ("no", "yes"):
        whole = renderer.tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}, {"role": "assistant", "content": word}], return_dict=True
        )["input_ids"]
        first[word] = whole[len(renderer.prompt_tokens([{"role": "user", "content": ""}]))]
    assert first["no"] != first["yes"]
    for question, answer, good in examples:
        text = template.replace("{prompt}", question).replace("{response}", answer)
        tokens = renderer.prompt_tokens([{"role": "user", "content": text}])
        with torch.no_grad():
            logits = judge(torch.tensor([tokens])).logits[0, -1]
        right += (logits[first["yes"]] > logits[first["no"]]).item() == good
    assert right / len(examples) >= 0.85
