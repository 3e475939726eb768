"""Which completions become preference pairs."""

from dataclasses import replace

from posttrain.pairs import FRESH, Sampled, mine
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
