"""The calculator: what it takes for an equation, what it makes of it, and when it is silent."""

import random
import time

import pytest

from posttrain.config import resolve_model
from posttrain.tiny.calculator import MAX_REPLIES, equations, reply, value
from posttrain.tiny.tasks import math_problem
from rollouts.dotted import load_dotted
from rollouts.env import reply_tokens
from rollouts.renderer import Renderer
from rollouts.types import Prompt
from tests.test_env import turn_end

MATH = Prompt("p", ({"role": "user", "content": "22+25+6"},), "math", answer="53")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("22+20=42+5=47, 47+6=53\n<ans>53</ans>", [("22+20", 42), ("42+5", 47), ("47+6", 53)]),
        ("5-8=-3+1=-2", [("5-8", -3), ("-3+1", -2)]),
        ("2 + 3*4 = 14.", [("2+3*4", 14)]),
        ("5+9=1Answer: 14", [("5+9", 1)]),
        ("Answer: 47", []),
        ("47+6\n== 53", []),
        ("47+6=> 53", []),
        ("x+3+4=9, 2*(3+4)=14, 2/3+4=5, 2**3+1=9", []),  # never a part of what it does not know
        ("1.5+2=3.5, 1+2=3.5, 1,5+2=3", []),
        ("v+2=v", []),
        ("", []),
        ("1+1=" + "9" * 40, []),
        ("+".join("1" * 20) + "=20", []),
        ("1234567890+1=2", []),
        ("__import__('os').abort()+1=2", []),
        ("١+١=٣", []),  # digits of other scripts
    ],
)
def test_equations(text: str, found: list[tuple[str, int]]) -> None:
    assert list(equations(text)) == found


@pytest.mark.parametrize(
    ("expression", "result"),
    [("7", 7), ("2+3*4", 14), ("2*3-4*5", -14), ("-3+1", -2), ("10-2-3", 5), ("007+1", 8), ("0*999999999", 0)],
)
def test_value(expression: str, result: int) -> None:
    assert value(expression) == result


def test_value_is_pythons() -> None:
    rng = random.Random(0)
    for _ in range(500):
        expression = str(rng.randrange(100)) + "".join(
            f"{rng.choice('+-*')}{rng.randrange(1000)}" for _ in range(rng.randrange(1, 9))
        )
        assert value(expression) == eval(expression), expression


def test_the_worlds_own_working_is_right() -> None:
    rng = random.Random(0)
    for index in range(500):
        problem = math_problem(rng, 1 + index % 5)
        assert list(equations(problem.worked)), problem
        assert reply(MATH, [problem.worked]) is None, problem


def test_the_first_wrong_equation_is_put_right() -> None:
    assert reply(MATH, ["22+20=42+5=48, 48+6=53\n<ans>53</ans>"]) == "42+5=47"
    assert reply(MATH, ["22 + 20 = 41"]) == "22+20=42"
    assert reply(MATH, ["22+20=41", "<ans>42</ans>"]) is None  # only the last turn
    assert reply(MATH, ["<ans>42</ans>"]) is None  # a wrong answer is no equation


def test_it_is_silent_in_other_capabilities_and_after_its_replies() -> None:
    assert reply(Prompt("p", (), "code"), ["1+1=3"]) is None
    turns = ["1+1=3"] * (MAX_REPLIES + 1)
    assert [reply(MATH, turns[:count]) for count in range(1, MAX_REPLIES + 2)] == ["1+1=2"] * MAX_REPLIES + [None]


def test_a_turn_costs_no_more_than_moments() -> None:
    started = time.monotonic()
    for text in ("1+" * 20_000, "9*9" * 20_000, "1+1=" * 20_000, "999999999*" * 5_000 + "1=1", "1 " * 20_000 + "="):
        reply(MATH, [text])
    assert time.monotonic() - started < 5


def test_the_tokenizer_has_its_characters() -> None:
    tokenizer = Renderer(resolve_model("tiny:base")).tokenizer
    said = reply(MATH, ["5-8=3"])
    assert said == "5-8=-3"
    ids = reply_tokens(tokenizer, said, turn_end(tokenizer))
    assert tokenizer.decode(ids) == "<|user|>5-8=-3<|end|><|assistant|>"
    assert len(ids) == 3 + len(said)  # no digit is merged with a sign


def test_it_is_found_by_its_dotted_path() -> None:
    assert load_dotted("posttrain.tiny.calculator:reply", "environment") is reply
