"""Pruning by judges that fail on some rows or on some of their answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from curricula.datasets import Demonstration
from judges.llm import Failure, Verdict
from judges.verdict_cache import VerdictCache
from posttrain import prune as stage
from posttrain.config import load_config
from posttrain.prune import Judged, Record, prune
from posttrain.rundir import RunDir
from rollouts.errors import UserError
from rollouts.types import Message
from tests.judges.server import Server, completion, serving

EASY, HARD = (completion(json.dumps({"label": label})) for label in ("easy", "hard"))


def run_with(server: Server, folder: Path, *words: str) -> RunDir:
    config = load_config("tiny", [
        "data.demonstrations.limit=6", "judge.template=null", "prune.near_duplicates=null",
        f"judge.endpoint={{base_url: '{server.url}', model: m, retries: 0, concurrency: 1, samples: 3}}", *words,
    ])  # fmt: skip
    rundir = RunDir(folder, config)
    prune(config, rundir)
    return rundir


def test_a_short_vote_is_told_and_asked_for_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        server.scripts = {"### Task": [(500, "{}"), *[(200, HARD)] * 100]}
        run = run_with(server, tmp_path / "r")
        assert len(server.seen) == 18
        found = json.loads((run.stage("sft") / "prune.json").read_text())
        name = f"m at {server.url}"
        assert (found["failed_by_judge"], found["short_by_judge"]) == ({name: 0}, {name: 1})
        line = (
            f"verdicts of {name} by fewer answers than were asked for, since the others failed: 1; a rerun asks again"
        )
        assert line in capsys.readouterr().err
        assert line in (run.stage("sft") / "prune.md").read_text()
        run_with(server, tmp_path / "r")
        assert len(server.seen) == 21  # the one row


def test_fewer_answers_than_half_are_no_verdict(tmp_path: Path) -> None:
    with serving() as server:
        server.scripts = {"### Task": [(500, "{}"), (500, "{}"), *[(200, EASY)] * 100]}
        with pytest.raises(UserError, match=r"1 of 6 demonstrations could not be judged by m at .* 1 times: 2 of 3"):
            run_with(server, tmp_path / "r")
        server.asked.clear()
        run = run_with(server, tmp_path / "s", "judge.max_failed=0.2")
        assert json.loads((run.stage("sft") / "prune.json").read_text())["reasons"]["dropped: not judged"] == 1


# ---------------------------------------------------------------------------------------------------- several judges


def row(index: int) -> Demonstration:
    said = ({"role": "user", "content": f"{index}+1"}, {"role": "assistant", "content": str(index + 1)})
    return Demonstration(f"r{index}", said, "math")


def verdict(score: float) -> Verdict:
    return Verdict(score, "hard", "", "j", {"easy": 0.0, "medium": 0.0, "hard": 1.0})


ROWS = [row(index) for index in range(4)]
SOUND: Judged = {index: verdict(0.8) for index in range(4)}
FAILING: Judged = {index: Failure("timed out") for index in range(4)}


def test_a_judge_of_a_panel_that_judges_nothing_ends_the_stage() -> None:
    by_judge = {"a": SOUND, "b": FAILING}
    candidates = [stage._candidate(ROWS, index, by_judge, {}) for index in range(4)]
    with pytest.raises(UserError, match=r"4 of 4 demonstrations could not be judged by b \(4\) \(allowed: "):
        stage._check_failed(candidates, by_judge, {}, 0.1)


def test_a_row_that_one_judge_of_a_panel_cannot_judge_has_no_score_of_the_others() -> None:
    by_judge = {"a": SOUND, "b": {**SOUND, 1: Failure("timed out")}}
    candidates = [stage._candidate(ROWS, index, by_judge, {}) for index in range(4)]
    assert [candidate.problem for candidate in candidates] == ["", "not judged: timed out", "", ""]
    stage._check_failed(candidates, by_judge, {}, 0.25)
    with pytest.raises(UserError, match=r"1 of 4 demonstrations could not be judged by b \(1\) \(allowed: "):
        stage._check_failed(candidates, by_judge, {}, 0.2)


def test_neither_failures_nor_short_votes_are_cached(tmp_path: Path) -> None:
    said: Judged = {0: verdict(0.5), 1: Failure("timed out"), 2: Verdict(1.0, "hard", "", "j", {}, missing=1)}
    asked: list[Any] = []

    def ask(todo: dict[int, Sequence[Message]], record: Record) -> None:
        asked.append(sorted(todo))
        record({index: said[index] for index in todo})

    with VerdictCache(tmp_path / "cache.sqlite") as cache:
        for _ in range(2):
            assert stage._ask(ROWS, [0, 1, 2], "j", "t", cache, ask) == said
    assert asked == [[0, 1, 2], [1, 2]]
