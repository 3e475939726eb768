"""The prompts of a run, under the instructions that the configuration names."""

import json
from pathlib import Path

import pytest

from curricula.instructions import Instruction
from posttrain import data
from posttrain.config import Config, load_config, resolve_model
from rollouts.errors import ConfigError, DataError
from rollouts.renderer import Renderer
from rollouts.types import Prompt

POOLS = """data.instructions.pools={math: [
    {id: short, text: 'End with So:.', format: ['So:', '']},
    {id: long, text: 'Think of it for as long as you like and end with Answer:.'},
    {id: other, text: 'Finish with Done: after all that you have to say, and there may be very much.', train: false},
]}"""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(resolve_model("tiny:base"))


def config(*overrides: str) -> Config:
    return load_config("tiny", ["data.prompts.limit=60", "data.heldout.limit=60", *overrides])


def test_pools_of_the_configuration() -> None:
    pools = data.instructions(config(POOLS.replace("\n", " ")))
    assert pools.of("math") == [
        Instruction("short", "End with So:.", ("So:", "")),
        Instruction("long", "Think of it for as long as you like and end with Answer:."),
        Instruction(
            "other", "Finish with Done: after all that you have to say, and there may be very much.", train=False
        ),
    ]
    assert [each.instruction_id for each in pools.of("math", trained=True)] == ["short", "long"]
    assert data.instructions(config()).capabilities == []
    assert data.instructions(config("data.instructions.path=tiny:instructions")).capabilities == [
        "math", "reasoning", "code",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "overrides", "problem"),
    [
        ({"answer": None}, [], "neither 'answer' nor 'tests', of which 'auto' needs one"),
        ({"tests": ["assert f(1) == 1"]}, ["reward=math"], "no field 'answer', which 'math' needs"),
        ({"answer": "1"}, ["reward=code"], "no field 'tests', which 'code' needs"),
        ({"answer": "1"}, ["reward=format"], "no field 'format', which 'format' needs"),
        ({"tests": "True"}, ["rubric={criteria: {right: {reward: exact}}}"], "no field 'answer', which 'exact' needs"),
        (
            {"tests": "True"},
            ["reward=math", "rubric={criteria: {right: {reward: code}}, capabilities: [chat]}"],
            "no field 'answer', which 'math' needs",
        ),
    ],
)
def test_a_prompt_that_lacks_what_the_reward_needs_is_told_before_it_is_drawn(
    renderer: Renderer, tmp_path: Path, row: dict[str, object], overrides: list[str], problem: str
) -> None:
    file = tmp_path / "x.jsonl"
    whole = {"prompt": "1+1", "answer": "2", "tests": ["True"], "format": ["", "."]}
    file.write_text("".join(json.dumps(each) + "\n" for each in (whole, {"prompt": "2+2", **row})))
    for window in ([], ["data.prompts.window=200"]):
        settings = config(f"data.prompts.path={file}", "rl.quotas=null", *overrides, *window)
        with pytest.raises(DataError, match=rf"x\.jsonl:2: {problem}$"):
            data.prompts(settings, "prompts", renderer, 96, print)
    own = config(f"data.prompts.path={file}", "rl.quotas=null", "reward=my_rewards:own")
    assert len(data.prompts(own, "prompts", renderer, 96, print)) == 2


def test_held_out_prompts_are_asked_under_a_pool_and_others_only_when_they_are_drawn(renderer: Renderer) -> None:
    settings = config(POOLS.replace("\n", " "))
    plain = {name: data.prompts(config(), name, renderer, 96, print) for name in ("prompts", "heldout")}
    assert data.prompts(settings, "prompts", renderer, 96, print) == plain["prompts"]
    heldout = data.prompts(settings, "heldout", renderer, 96, print)
    assert [prompt.prompt_id for prompt in heldout] == [prompt.prompt_id for prompt in plain["heldout"]]
    for before, now in zip(plain["heldout"], heldout, strict=True):
        if now.capability != "math":
            assert now == before
            continue
        assert now.instruction in ("short", "long", "other")
        assert now.instruction_trained == (now.instruction != "other")
        assert now.messages[1:] == before.messages[1:]


def test_a_prompt_has_to_fit_under_the_longest_instruction_that_is_trained(renderer: Renderer) -> None:
    settings = config(POOLS.replace("\n", " "))
    asked = data.instructions(settings).of("math")
    longest = [max(len(renderer.prompt_tokens(each.ask(prompt).messages)) for each in asked[:2])
               for prompt in data.prompts(settings, "prompts", renderer, 96, print)
               if prompt.capability == "math"]  # fmt: skip
    room = sorted(longest)[len(longest) // 2]
    said: list[str] = []
    tight = settings.model_copy(update={"max_model_len": 96 + room})
    left = [p for p in data.prompts(tight, "prompts", renderer, 96, said.append) if p.capability == "math"]
    assert len(left) == sum(length <= room for length in longest) < len(longest)
    gone = 60 - len(data.prompts(tight, "prompts", renderer, 96, print))
    assert said == [f"tiny:rl: left out {gone} of 60 prompts longer than {room} tokens"]


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("data.instructions", "data.instructions.pools={maths: [{id: a, text: Answer.}]}"),
        ("rubric.capabilities", "rubric={capabilities: [maths, math], criteria: {right: {reward: auto}}}"),
    ],
)
def test_a_capability_that_no_prompt_has_is_told(key: str, override: str, renderer: Renderer) -> None:
    said: list[str] = []
    data.prompts(config(override), "prompts", renderer, 96, said.append)
    assert said == [f"{key}: no prompt of data.prompts has the capability maths"]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{math: [{id: a, txt: b}]}", "data.instructions.pools.math.0.txt: unknown key; did you mean 'text'?"),
        (
            "{math: [{id: a, text: b, format: [x]}]}",
            'data.instructions.pools.math.0.format: ["x"]: expected the two texts [left, right]',
        ),
        (
            "{math: [{id: a, text: b}, {id: a, text: c}]}",
            "data.instructions.pools.math.1.id: 'a': is in the pool already",
        ),
        (
            "{math: [{id: a, text: b, train: false}]}",
            '.pools.math: ["a"]: no instruction but held-out ones (train: false); expected one to train with',
        ),
        ("{math: [{id: a}]}", "data.instructions.pools.math.0.text: is not set, and has no default"),
    ],
)
def test_a_mistake_in_a_pool_is_one_line(value: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(f"data.instructions.pools={value}")
    assert str(error.value).endswith(line)


def test_a_file_and_pools_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"data\.instructions\.path is set too; keep one of the two"):
        config("data.instructions.path=tiny:instructions", "data.instructions.pools={math: [{id: a, text: b}]}")


def stream_config(*overrides: str) -> Config:
    return load_config("tiny", ["data.prompts.window=120", *overrides])


def test_a_window_is_filled_as_the_whole_set_is_read(renderer: Renderer) -> None:
    said: list[str] = []
    window = data.window(stream_config(), renderer, said.append, None)
    whole = data.prompts(config("data.prompts.limit=null"), "prompts", renderer, 96, print)
    assert len(window) == 120
    assert {prompt.capability for prompt in window.prompts} == {"math", "reasoning", "code"}
    for capability, seats in {"math": 34, "reasoning": 34, "code": 22}.items():  # as the quotas of the preset
        expected = [prompt for prompt in whole if prompt.capability == capability][:seats]
        assert [prompt for prompt in window.prompts if prompt.capability == capability] == expected
    (line,) = said
    assert line.startswith("tiny:rl: read as it is needed, at most 120 prompts at a time; 90 prompts (")
    assert line.endswith(" rows so far")


def test_commands_beside_rl_take_the_first_prompts_of_a_stream(renderer: Renderer) -> None:
    said: list[str] = []
    found = data.prompts(stream_config(), "prompts", renderer, 96, said.append)
    assert found == data.prompts(config("data.prompts.limit=120"), "prompts", renderer, 96, print)
    assert said == ["tiny:rl: the first 120 prompts (data.prompts.window)"]
    few = data.prompts(stream_config("data.prompts.limit=50"), "prompts", renderer, 96, print)
    assert found[:50] == few


def test_a_window_holds_what_fits_under_the_longest_instruction(renderer: Renderer) -> None:
    settings = stream_config(POOLS.replace("\n", " "))
    longest = data.instructions(settings).of("math")[1]

    def length(prompt: Prompt) -> int:
        asked = longest.ask(prompt) if prompt.capability == "math" else prompt
        return len(renderer.prompt_tokens(asked.messages))

    whole = data.prompts(config("data.prompts.limit=null"), "prompts", renderer, 96, print)
    lengths = sorted(length(prompt) for prompt in whole if prompt.capability == "math")
    room = lengths[len(lengths) // 2]
    window = data.window(settings.model_copy(update={"max_model_len": 96 + room}), renderer, print, None)
    assert len(window) == 120
    assert max(map(length, window.prompts)) <= room < lengths[-1]
    missing: list[str] = []
    data.window(
        stream_config("data.instructions.pools={maths: [{id: a, text: Answer.}]}"), renderer, missing.append, None
    )
    assert missing[0] == "data.instructions: no prompt of data.prompts has the capability maths"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.heldout.window=100",
            "data.heldout.window: 100: only data.prompts has a window; data.heldout.limit takes the first so many rows",
        ),
        (
            "data.prompts.window=20",
            "20: expected at least 2 * rl.prompts_per_step * (rl.max_staleness + 1) = 96, twice what is under way",
        ),
        ("data.prompts.window=0", "data.prompts.window: 0: expected at least 1"),
    ],
)
def test_a_mistake_in_a_window_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(override, "rl.prompts_per_step=16", "rl.max_staleness=2")
    assert str(error.value).endswith(line)


def test_prompts_of_capabilities_without_a_quota_are_told(renderer: Renderer) -> None:
    settings, told = config("rl.quotas={math: 2}"), list[str]()
    found = data.prompts(settings, "prompts", renderer, 8, told.append)
    others = [prompt.capability for prompt in found if prompt.capability != "math"]
    assert {"code", "reasoning"} == set(others)
    data.check_quotas(settings, found, told.append)
    data.check_quotas(config(), found, told.append)
    assert told == [f"tiny:rl: left out {len(others)} prompts of capabilities not in rl.quotas: code, reasoning"]
