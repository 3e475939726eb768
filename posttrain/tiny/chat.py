"""The tiny world's chat: a question about where things are, to be answered in a manner that the prompt asks for.

Whether an answer names the place, `names_place` says. Whether it has the manner, and is neither broken nor run on, no
verifier of ours does: a judge is trained to tell, on answers whose writers are known to have tried or not. What the
manner is made of (`Manner`) is known to the writers alone.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollouts.types import Prompt

CAPABILITY = "chat"
LEVELS = (1, 2)
"""Difficulties: the number of things that a question tells of."""
DEMONSTRATIONS, PROMPTS, HELD_OUT = 5000, 600, 240

COLOURS = ("red", "blue", "green", "black", "white", "old", "new", "big", "small")
THINGS = ("cup", "hat", "lamp", "book", "key", "ball", "coat", "pen", "bag", "box", "cat", "map", "bell", "drum")
PLACES = (
    "on the shelf", "under the bed", "in the hall", "by the door", "on the roof", "in the yard", "at the well",
    "behind the barn", "near the gate", "on the desk", "in the boat", "over the sink",
)  # fmt: skip


@dataclass(frozen=True)
class Manner:
    """A way to answer. `ask` is the prompt's word for it; an answer is an opening, the fact and a closing.

    Example: `Manner("politely", ("Certainly,",), ("Thank you.",))`
    """

    ask: str
    openings: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    brief: bool = False

    def write(self, rng: random.Random, thing: str, place: str) -> str:
        """One answer in this manner."""
        if self.brief:
            return f"{place.capitalize()}."
        return _said(rng.choice(self.openings), thing, place, rng.choice(self.closings))

    def answers(self, thing: str, place: str) -> list[str]:
        """All answers in this manner."""
        if self.brief:
            return [f"{place.capitalize()}."]
        return [_said(opening, thing, place, closing) for opening in self.openings for closing in self.closings]


def _said(opening: str, thing: str, place: str, closing: str) -> str:
    the = "the" if opening.endswith(",") else "The"
    return f"{opening} {the} {thing} is {place}. {closing}"


MANNERS = (
    Manner("Politely", ("Certainly,", "Of course,", "With pleasure,"), ("Thank you.", "At your service.")),
    Manner("Gladly", ("Hooray!", "Oh joy!", "How nice!"), ("What a day!", "I am so glad!")),
    Manner("Sadly", ("Alas,", "Oh dear,", "I am sorry,"), ("I could weep.", "What a pity.")),
    Manner("As a pirate", ("Arr!", "Ahoy!", "Yo ho!"), ("So says the captain.", "Shiver me timbers.")),
    Manner("Briefly", brief=True),
)


@dataclass(frozen=True)
class Chat:
    """A question. `things[i]` is at `places[i]`; the first is asked for."""

    manner: Manner
    question: str
    things: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def level(self) -> int:
        """Its difficulty."""
        return len(self.things)


@dataclass(frozen=True)
class Care:
    """How carefully people answer, as probabilities: to miss the manner, to name a wrong place, to spoil the answer by
    a part too few or too many.
    """

    misses_manner: float
    wrong_place: float
    spoils: float


DEMONSTRATED = Care(misses_manner=0.5, wrong_place=0.05, spoils=0.05)
JUDGED = Care(misses_manner=0.25, wrong_place=0.15, spoils=0.2)


def draw_chat(rng: random.Random, level: int) -> Chat:
    """A question about `level` things."""
    things = tuple(f"{rng.choice(COLOURS)} {thing}" for thing in rng.sample(THINGS, level))
    places = tuple(rng.sample(PLACES, level))
    told = [f"the {thing} is {place}" for thing, place in zip(things, places, strict=True)]
    rng.shuffle(told)
    manner = rng.choice(MANNERS)
    return Chat(manner, f"{manner.ask}: {', '.join(told)}. Where is the {things[0]}?", things, places)


def write_answer(rng: random.Random, chat: Chat, care: Care) -> tuple[str, bool]:
    """One writer's answer, and whether it is what was asked for."""
    manner, place, good = chat.manner, chat.places[0], True
    if rng.random() < care.misses_manner:
        manner, good = rng.choice([each for each in MANNERS if each is not chat.manner]), False
    if rng.random() < care.wrong_place:
        place, good = rng.choice([each for each in PLACES if each != place]), False
    answer = manner.write(rng, chat.things[0], place)
    if rng.random() < care.spoils:
        return _spoilt(rng, chat, answer), False
    return answer, good


def is_good(question: str, answer: str) -> bool:
    """Whether an answer is what was asked for, as only the writers know it: what a judge is to be held against."""
    (manner,) = (each for each in MANNERS if question.startswith(f"{each.ask}: "))
    asked = question[question.rindex("Where is the ") :].removeprefix("Where is the ").removesuffix("?")
    (place,) = (each for each in PLACES if f"the {asked} is {each}" in question)
    return answer in manner.answers(asked, place)


def names_place(prompt: Prompt, completion: str) -> bool:
    """A reward: whether an answer names the place, and no other."""
    return [place for place in PLACES if place in completion.lower()] == [prompt.answer]


def _spoilt(rng: random.Random, chat: Chat, answer: str) -> str:
    """An answer with a part left out, said twice, or of another manner behind it."""
    words = answer.split()
    other = rng.choice([each for each in MANNERS if each is not chat.manner])
    return rng.choice(
        [
            " ".join(words[: rng.randrange(1, max(2, len(words) - 1))]),
            f"{answer} {answer}",
            f"{words[0]} {answer}",
            f"{answer} {other.write(rng, chat.things[0], rng.choice(PLACES))}",
            f"{answer} {words[-1]}",
        ]
    )


def judged(seed: str) -> Iterator[tuple[str, str, bool]]:
    """Questions without end, answers, and whether these are what was asked for; no question is held out."""
    rng, seen = random.Random(f"{seed}/chat judge"), {chat.question for chat in _heldout()}
    while True:
        chat = draw_chat(rng, rng.choice(LEVELS))
        if chat.question not in seen:
            yield (chat.question, *write_answer(rng, chat, JUDGED))


def demonstrations() -> Iterator[dict[str, Any]]:
    """5,000 answers, every second of which minds the manner, and among them those of `tiny:sft`, one behind two."""
    rng, seen = random.Random("chat demonstrations"), {chat.question for chat in _heldout()}
    rows = (_row(chat, write_answer(rng, chat, DEMONSTRATED)[0]) for chat in _others(rng, seen, DEMONSTRATIONS))
    others = _world("sft")
    for index, row in enumerate(rows):
        yield row
        if index % 2:
            yield next(others)


def prompts() -> Iterator[dict[str, Any]]:
    """600 questions, and behind them the prompts of `tiny:rl`."""
    seen = {chat.question for chat in _heldout()}
    yield from map(_row, _others(random.Random("chat prompts"), seen, PROMPTS))
    yield from _world("rl")


def heldout() -> Iterator[dict[str, Any]]:
    """240 questions that are nowhere else, and behind them the prompts of `tiny:heldout`."""
    yield from map(_row, _heldout())
    yield from _world("heldout")


def _heldout() -> list[Chat]:
    return list(_others(random.Random("chat heldout"), set(), HELD_OUT))


def _others(rng: random.Random, seen: set[str], count: int) -> Iterator[Chat]:
    """So many different questions that are not in `seen`, which gets them; as many of each difficulty."""
    levels = itertools.cycle(LEVELS)
    for level in itertools.islice(levels, count):
        while (chat := draw_chat(rng, level)).question in seen:
            pass
        seen.add(chat.question)
        yield chat


def _row(chat: Chat, answer: str | None = None) -> dict[str, Any]:
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    messages = [{"role": "user", "content": chat.question}, *said]
    return {"messages": messages, "answer": chat.places[0], "capability": CAPABILITY, "difficulty": chat.level}


def _world(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of the world."""
    with (Path(__file__).parent / "world" / f"{name}.jsonl").open() as lines:
        yield from map(json.loads, lines)
