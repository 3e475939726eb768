"""The verifier's judgement of a group, and its shards."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from curricula.instructions import Instruction
from judges.scorer import load_scorer
from posttrain.slots import Draw
from posttrain.verifier import Verifier
from rollouts.errors import DataError, JudgeError
from rollouts.types import Prompt, Rollout

PROMPT = Prompt("p", ({"role": "user", "content": "47+38"},), "math", answer="85", answer_format=("<ans>", "</ans>"))


def rollout(text: str, spans: list[tuple[int, int, int]], finish: str = "stop") -> Rollout:
    length = spans[-1][1]
    return Rollout(list(range(length)), [True] * length, [-0.5] * length, spans, finish, text)


def test_a_group_is_scored_and_summed_up(tmp_path: Path) -> None:
    verifier = Verifier(partial(load_scorer, "auto"), [])
    rollouts = [
        rollout("<ans>85</ans>", [(0, 3, 4), (3, 5, 5)]),
        rollout("<ans>84</ans>", [(0, 2, 5)]),
        rollout("<ans>85</ans>", [(0, 2, 5)], "length"),
    ]
    draw = Draw(17, 3, PROMPT, 4)
    judged, group = verifier.judge(draw, [7, 8], rollouts)
    assert judged.outcomes == (True, False, False)
    assert (judged.mean_reward, judged.oldest_version, judged.tokens) == (pytest.approx(1 / 3), 4, 9)
    assert (judged.draw, judged.payload) == (draw, None)
    assert (group.draw_id, group.prompt_token_ids, group.prompt) == (17, [7, 8], PROMPT)
    assert [each.reason for each in group.rollouts] == ["", "wrong answer", "truncated"]
    assert group.rollouts[0].breakdown == {"format": 1.0, "correct": 1.0}

    shards = [tmp_path / f"{number}.parquet" for number in range(2)]
    assert verifier.write_shard(str(shards[0]), under_way={group.draw_id}) == 0  # kept for the next one
    assert verifier.write_shard(str(shards[0])) == 3
    rows = read_table(shards[0]).to_pylist()
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0]
    assert (rows[0]["first_version"], rows[0]["last_version"]) == (4, 5)
    assert verifier.write_shard(str(shards[1])) == 0  # each group once
    assert not shards[1].exists()


def test_what_has_waited_too_long_for_its_turn_is_not_judged(tmp_path: Path) -> None:
    verifier = Verifier(partial(load_scorer, "auto"), [])
    texts = [rollout("<ans>85</ans>", [(0, 3, 4)])]
    with pytest.raises(JudgeError, match="its turn to be judged did not come in time"):
        verifier.judge(Draw(17, 3, PROMPT, 4), [7], texts, until=time.time() - 1)
    assert verifier.write_shard(str(tmp_path / "0.parquet")) == 0
    assert verifier.judge(Draw(17, 3, PROMPT, 4), [7], texts, until=time.time() + 60)[0].outcomes == (True,)


def test_a_draw_is_judged_by_the_format_of_its_instruction() -> None:
    arrow = Instruction("arrow", "Mark it with =>.", ("=>", "")).ask(PROMPT)
    own = Instruction("short", "Only the answer.").ask(PROMPT)
    texts = [rollout("<ans>85</ans>", [(0, 2, 0)]), rollout("=> 85", [(0, 2, 0)])]
    outcomes = [
        Verifier(partial(load_scorer, "auto"), []).judge(Draw(1, 0, prompt, 0), [7], texts)[0].outcomes
        for prompt in (arrow, own)
    ]
    assert outcomes == [(False, True), (True, False)]


def test_a_users_reward_is_found_where_the_driver_found_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_users_module.py").write_text("def long(prompt, completion): return len(completion) > 3")
    monkeypatch.setattr(sys, "path", list(sys.path))
    judged, _ = Verifier(partial(load_scorer, "a_users_module:long"), [str(tmp_path)]).judge(
        Draw(0, 0, PROMPT, 0), [], [rollout("abcd", [(0, 1, 0)]), rollout("abc", [(0, 1, 0)])]
    )
    assert judged.outcomes == (True, False)


def test_a_prompt_that_cannot_be_judged_is_no_unsolved_one(tmp_path: Path) -> None:
    verifier = Verifier(partial(load_scorer, "code"), [])
    with pytest.raises(DataError, match="prompt p: no 'tests'"):
        verifier.judge(Draw(0, 0, PROMPT, 0), [], [rollout("x", [(0, 1, 0)])])
    assert verifier.write_shard(str(tmp_path / "x.parquet")) == 0


# ------------------------------------------------------------------------------------------ a group in two parts


COUNTED = """
seen = []

def reward(prompt, completion):
    seen.append(completion)
    if completion == "later" and seen.count("later") == 1:
        raise ValueError("not now")
    return completion == "yes"
"""


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Verifier, list[str]]]:
    """A verifier, and the completions that its reward was asked about."""
    (tmp_path / "counted.py").write_text(COUNTED)
    monkeypatch.setattr(sys, "path", list(sys.path))
    verifier = Verifier(partial(load_scorer, "counted:reward"), [str(tmp_path)])
    yield verifier, sys.modules["counted"].seen
    del sys.modules["counted"]


def part(*texts: str, version: int = 3) -> list[Rollout]:
    return [rollout(text, [(0, 2, version)]) for text in texts]


DRAW = Draw(5, 0, PROMPT, 3)


def test_the_rest_of_a_group_is_judged_alone_and_the_group_kept_once(
    counted: tuple[Verifier, list[str]], tmp_path: Path
) -> None:
    verifier, seen = counted
    first, earlier = verifier.judge(DRAW, [7], part("yes", "no"), others=2)
    assert (first.outcomes, first.tokens) == ((True, False), 4)
    assert verifier.write_shard(str(tmp_path / "a.parquet")) == 0  # it is not decided yet
    judged, group = verifier.judge(DRAW, [7], part("no", "no!", version=4), earlier)
    assert (judged.outcomes, judged.tokens, judged.oldest_version) == ((True, False, False, False), 8, 3)
    assert judged.mean_reward == pytest.approx(1 / 4)
    assert [each.text for each in group.rollouts] == seen == ["yes", "no", "no", "no!"]
    assert verifier.write_shard(str(tmp_path / "a.parquet")) == 4
    rows = read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["rollout"], row["text"], row["reward"]) for row in rows] == [
        (0, "yes", 1.0), (1, "no", 0.0), (2, "no", 0.0), (3, "no!", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["yes", "no"])
def test_a_group_that_is_given_up_is_kept_as_it_is(
    counted: tuple[Verifier, list[str]], tmp_path: Path, text: str
) -> None:
    verifier, _ = counted
    judged, _ = verifier.judge(DRAW, [7], part(text, text), others=2)
    assert judged.outcomes == (text == "yes",) * 2
    assert verifier.write_shard(str(tmp_path / "a.parquet")) == 2
    assert verifier.write_shard(str(tmp_path / "b.parquet")) == 0


def test_a_judging_of_the_rest_that_fails_keeps_nothing_and_is_tried_again(
    counted: tuple[Verifier, list[str]], tmp_path: Path
) -> None:
    verifier, seen = counted
    _, earlier = verifier.judge(DRAW, [7], part("yes", "no"), others=1)
    with pytest.raises(JudgeError, match="not now"):
        verifier.judge(DRAW, [7], part("later"), earlier)
    assert verifier.write_shard(str(tmp_path / "a.parquet")) == 0
    judged, _ = verifier.judge(DRAW, [7], part("later"), earlier)
    assert judged.outcomes == (True, False, False)
    assert seen == ["yes", "no", "later", "later"]
    assert verifier.write_shard(str(tmp_path / "a.parquet")) == 3
