"""Which completions become preference pairs."""

from collections import Counter
from dataclasses import replace

from posttrain.pairs import FRESH, PAIR_KINDS, Sampled, mine, preferred
from rollouts.types import Prompt, Rollout

ASKED = ("<ans>", "</ans>")


def prompt(name: str) -> Prompt:
    return Prompt(name, ({"role": "user", "content": name},), answer="85", answer_format=ASKED)


def sampled(
    text: str, solved: bool = False, name: str = "p", draw: int = FRESH, finish: str = "stop", logprob: float = -1.0
) -> Sampled:
    return Sampled(prompt(name), Rollout([5], [True], [logprob], [], finish, text, outcome=solved), draw)


SOLVED = sampled("<ans>85</ans>", True, draw=1, logprob=-2.0)
WORKED = sampled("40+30=70+15=85\n<ans>85</ans>", True, draw=2, logprob=-1.5)
WRONG = sampled("<ans>84</ans>", draw=3)
BARE = sampled("85", draw=4, logprob=-0.1)
EMPTY = sampled("", draw=5)
RUN_ON = sampled("<ans>85</ans>\nand 3+4?\n<ans>7</ans>", draw=6)
REPEATED = sampled("no no no no no no no no\n<ans>85</ans>", draw=7)


def test_each_kind_is_paired_with_the_likeliest_solved_completion() -> None:
    pairs = {pair.reason: pair for pair in mine([SOLVED, WORKED, WRONG, BARE, EMPTY, RUN_ON, REPEATED], 10, 10, 0)}
    assert {pair.chosen for pair in pairs.values()} == {WORKED.rollout.text}
    assert {kind: pair.rejected for kind, pair in pairs.items()} == {
        "format": "85",
        "run_on": RUN_ON.rollout.text,
        "empty": "",
        "repetition": REPEATED.rollout.text,
    }
    assert {pair.draw_ids for pair in pairs.values()} == {(2, 4), (2, 5), (2, 6), (2, 7)}


def test_a_pair_has_the_tokens_that_were_sampled() -> None:
    endless = Sampled(prompt("p"), Rollout([5, 6, 7], [True] * 3, [-1.0] * 3, [], "length", "<ans>85"), 8)
    (pair,) = mine([SOLVED, endless], 10, 10, 0)
    assert (pair.chosen_ids, pair.rejected_ids, pair.draw_ids) == ([5], [5, 6, 7], (1, 8))


def test_a_wrong_answer_is_never_preferred() -> None:
    assert mine([WRONG, BARE], 10, 10, 0) == []


def test_what_has_a_corner_case_is_never_chosen() -> None:
    assert mine([BARE, EMPTY, RUN_ON], 10, 10, 0) == []
    truncated = sampled("<ans>85</ans>", True, finish="length")
    assert mine([truncated, BARE], 10, 10, 0) == []


def test_a_pair_is_of_one_prompt() -> None:
    assert mine([SOLVED, sampled("85", name="q")], 10, 10, 0) == []


def test_the_same_text_is_rejected_once() -> None:
    assert len(mine([SOLVED, BARE, BARE, sampled("85", draw=9)], 10, 10, 0)) == 1


def test_kinds_take_turns_within_the_limits() -> None:
    samples = [
        sample
        for name in "abcdef"
        for sample in (sampled("<ans>85</ans>", True, name), sampled("85", name=name), sampled("", name=name))
    ]
    assert [pair.reason for pair in mine(samples, 2, 10, 0)] == ["format", "empty", "format", "empty"]
    assert [pair.reason for pair in mine(samples, 6, 3, 0)] == ["format", "empty", "format"]
    assert len(mine(samples, 6, 100, 0)) == 12


def test_the_seed_chooses_the_prompts() -> None:
    samples = [
        sample for name in "abcdefgh" for sample in (sampled("<ans>85</ans>", True, name), sampled("8", name=name))
    ]

    def chosen(seed: int) -> list[str]:
        return [pair.prompt.prompt_id for pair in mine(samples, 3, 3, seed)]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(10)}) > 1


def test_completions_under_different_instructions_are_no_pair() -> None:
    chosen = Sampled(replace(prompt("p"), instruction="a"), SOLVED.rollout, 1)
    rejected = Sampled(replace(prompt("p"), instruction="b"), BARE.rollout, 2)
    assert mine([chosen, rejected], 10, 10, 0) == []
    (pair,) = mine([chosen, replace(rejected, prompt=chosen.prompt)], 10, 10, 0)
    assert (pair.prompt.instruction, pair.rejected) == ("a", "85")


def test_a_near_miss_is_a_wrong_answer_beside_a_right_one_of_similar_length() -> None:
    def of(length: int, text: str, solved: bool, draw: int) -> Sampled:
        rollout = Rollout([5] * length, [True] * length, [-1.0] * length, [], "stop", text, outcome=solved)
        return Sampled(prompt("p"), rollout, draw)

    right, longer = of(10, "<ans>85</ans>", True, 1), of(20, "so <ans>85</ans>", True, 2)
    wrong, long, short = (of(n, f"{n} <ans>8</ans>", False, n) for n in (19, 40, 4))
    (pair,) = mine([right, longer, wrong, long, short], 10, 10, 0, PAIR_KINDS)
    assert (pair.reason, pair.chosen, pair.rejected, pair.draw_ids) == (
        "near_miss", "so <ans>85</ans>", "19 <ans>8</ans>", (2, 19),
    )  # fmt: skip
    assert mine([right, long, short], 10, 10, 0, PAIR_KINDS) == []
    assert mine([right, longer, wrong], 10, 10, 0) == []  # not among the kinds that are asked for


def test_fresh_samples_and_recorded_ones_share_the_limits_and_repeat_nothing() -> None:
    def of(name: str, draw: int, *texts: str) -> list[Sampled]:
        return [sampled("<ans>85</ans>", True, name, draw), *(sampled(text, name=name, draw=draw) for text in texts)]

    recorded = [*of("a", 7, "85", "85!", ""), *of("b", 8, "8", "85!")]
    fresh = [*of("a", FRESH, "85"), *of("c", FRESH, "8 5")]
    pairs = mine([*recorded, *fresh], 3, 10, 0)
    assert [pair.draw_ids for pair in pairs[:2]] == [(FRESH, FRESH)] * 2
    assert {(pair.prompt.prompt_id, pair.rejected) for pair in pairs[:2]} == {("a", "85"), ("c", "8 5")}
    assert Counter(pair.reason for pair in pairs) == {"format": 3, "empty": 1}
    assert len({(pair.prompt.prompt_id, pair.rejected) for pair in pairs}) == 4
    whole = mine([*recorded, *fresh], 10, 10, 0)
    assert Counter(pair.reason for pair in whole) == {"format": 5, "empty": 1}
    assert [pair.draw_ids[0] == pair.draw_ids[1] for pair in whole] == [True] * 6
    assert [pair.draw_ids[0] for pair in mine([*recorded, *fresh], 10, 2, 0)] == [FRESH, FRESH]


def test_a_prompt_has_one_near_miss_fresh_or_recorded() -> None:
    samples = [
        sampled(text, solved, draw=draw)
        for draw, wrong in ((FRESH, "<ans>84</ans>"), (3, "<ans>83</ans>"))
        for text, solved in (("<ans>85</ans>", True), (wrong, False))
    ]
    assert [pair.rejected for pair in mine(samples, 10, 10, 0, PAIR_KINDS)] == ["<ans>84</ans>"]


async def test_a_preference_makes_a_pair_of_two_right_answers_and_a_tie_none() -> None:
    samples = [
        sampled(text, True, name, draw)
        for draw, name in enumerate("abc")
        for text in (f"{name} <ans>85</ans>", "<ans>85</ans>", "<ans>85</ans>")
    ] + [sampled("<ans>84</ans>", False, "a"), sampled("<ans>85</ans>", True, "d")]
    asked = []

    async def compare(about: Prompt, first: str, second: str) -> str:
        asked.append(about.prompt_id)
        if about.prompt_id == "c":
            return "tie"
        return "first" if first == "<ans>85</ans>" else "second"

    pairs = await preferred(samples, compare, 10, 0)
    assert sorted(asked) == ["a", "b", "c"]
    assert sorted((pair.prompt.prompt_id, pair.chosen, pair.rejected, pair.reason) for pair in pairs) == [
        (name, "<ans>85</ans>", f"{name} <ans>85</ans>", "preferred") for name in "ab"
    ]
    asked.clear()
    assert len(await preferred(samples, compare, 1, 0)) <= 1
    assert asked
