"""A scan with made-up engines, its table, and the statistics that RL starts with."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console
from rich.table import Table

from curricula.sampler import PromptSampler
from posttrain.config import load_config
from posttrain.passk import (
    CHUNK,
    Scanned,
    check_matches,
    count_solved,
    parse_k,
    read_scan,
    summary,
    tables,
)
from rollouts.errors import ConfigError, DataError, JudgeError
from rollouts.generator import Request
from rollouts.recorder import write_rows
from rollouts.types import Prompt, Rollout, Score


def scanned(name: str, solved: int, capability: str = "math", samples: int = 16) -> Scanned:
    return Scanned(name, capability, 2, "rl.jsonl", "ans-0", samples, solved)


class Words:
    """A renderer whose tokens are the prompt's number."""

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return (int(messages[-1]["content"]),)


class Engines:
    """A pool of two that solves as many samples of a prompt as its number says, modulo 5."""

    actors = ("one", "two")

    def __init__(self) -> None:
        self.asked: list[list[Request]] = []

    async def generate(self, requests: Sequence[Request]) -> list[list[Rollout]]:
        self.asked.append(list(requests))
        return [
            [
                Rollout([9], [True], [0.0], [], "stop", "yes" if index < request.prompt_token_ids[0] % 5 else "no")
                for index in range(request.n)
            ]
            for request in requests
        ]


def judge(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
    return [Score(float(rollout.text == "yes"), rollout.text == "yes") for rollout in rollouts]


async def test_every_prompt_is_sampled_once_as_rl_samples_it_and_counts_keep_their_order() -> None:
    prompts = [Prompt(f"p{index}", ({"role": "user", "content": str(index)},)) for index in range(3 * CHUNK + 7)]
    config = load_config("tiny", ["rl.sampling.temperature=0.7", "rl.sampling.max_tokens=33"])
    engines, done = Engines(), []
    solved, tokens = await count_solved(engines, Words(), prompts, judge, config, 4, done.append)  # type: ignore[arg-type]
    assert solved == [index % 5 for index in range(len(prompts))]
    assert sorted(map(len, engines.asked)) == [CHUNK + 7, 2 * CHUNK]  # a chunk for each of the two engines
    assert sum(done) == tokens == 4 * len(prompts)
    requests = [request for part in engines.asked for request in part]
    assert {request.n for request in requests} == {4}
    assert {request.sampling for request in requests} == {config.rl.sampling.sampling()}
    assert len({request.seed for request in requests}) == len(prompts)


@pytest.mark.parametrize("last", ["some", "one"])
async def test_what_cannot_be_judged_is_left_out_of_the_scan_and_counted(
    last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though it be all of a chunk."""
    prompts = [Prompt(f"p{index}", ({"role": "user", "content": str(index)},)) for index in range(2 * CHUNK + 1)]
    unjudged = {2 * CHUNK, *(range(0, 100, 9) if last == "some" else ())}

    def fails(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        if int(prompt.prompt_id[1:]) in unjudged:
            raise JudgeError(f"no verdict on {prompt.prompt_id}")
        return judge(prompt, rollouts)

    solved, _ = await count_solved(Engines(), Words(), prompts, fails, load_config("tiny"), 4)  # type: ignore[arg-type]
    assert solved == [None if index in unjudged else index % 5 for index in range(len(prompts))]
    line = f"{len(unjudged)} of {len(prompts)} prompts are left out, not judged; the last: no verdict on p"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("count", [3, 20 * CHUNK])
async def test_a_reward_that_always_fails_ends_the_scan_early(count: int) -> None:
    def fails(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        raise JudgeError("no verdict")

    prompts, engines = [Prompt(f"p{index}", ({"role": "user", "content": "1"},)) for index in range(count)], Engines()
    with pytest.raises(JudgeError, match="no verdict"):
        await count_solved(engines, Words(), prompts, fails, load_config("tiny"), 4)  # type: ignore[arg-type]
    assert len(engines.asked) <= 3


def test_the_table_holds_the_unbiased_estimates_and_the_buckets() -> None:
    rows = [scanned("a", 0), scanned("b", 4), scanned("c", 16), scanned("d", 13, "code"), scanned("e", 8, "code")]
    passes, buckets = (cells(table) for table in tables(summary(rows, [1, 4]), [1, 4]))
    # 1 - C(12, 4) / C(16, 4) = 0.7280 of `b`; of `e` 1 - C(8, 4) / C(16, 4) = 0.9615
    assert passes == {
        "math": ["3", f"{(0 + 0.25 + 1) / 3:.3f}", f"{(0 + 0.7280 + 1) / 3:.3f}"],
        "code": ["2", f"{(13 / 16 + 0.5) / 2:.3f}", f"{(1 + 0.9615) / 2:.3f}"],
        "all": ["5", f"{(0.25 + 1 + 13 / 16 + 0.5) / 5:.3f}", f"{(0.7280 + 1 + 1 + 0.9615) / 5:.3f}"],
    }
    assert buckets == {
        "math": ["1 (33%)", "1 (33%)", "0 (0%)", "0 (0%)", "1 (33%)"],
        "code": ["0 (0%)", "0 (0%)", "1 (50%)", "1 (50%)", "0 (0%)"],
        "all": ["1 (20%)"] * 5,
    }


def cells(table: Table) -> dict[str, list[str]]:
    """The first column's cell of each row → the others."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    return {name: list(rest) for name, *rest in rows}


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    found = summary([scanned("a", 3, "reasoning")] * 100_000, [1, 4, 16])
    console.print(*tables(found, [1, 4, 16]))
    text = console.export_text()
    assert "…" not in text
    for word in ("reasoning", "pass@16", "unsolved", "medium", "100000 (100%)"):
        assert word in text


def test_a_scan_is_what_datasets_loads(tmp_path: Path) -> None:
    write_rows(tmp_path / "scan.parquet", [scanned("a", 4).as_row(), scanned("b", 16).as_row()])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "scan.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0] == {
        "prompt_id": "a", "capability": "math", "difficulty": 2, "source": "rl.jsonl", "instruction": "ans-0",
        "samples": 16, "solved": 4, "question": "", "pass_rate": 0.25, "bucket": "hard",
    }  # fmt: skip
    assert loaded["bucket"][:] == ["hard", "solved"]


@pytest.mark.parametrize(("text", "ks"), [("1,4,16", [1, 4, 16]), (" 4 , 1", [1, 4]), ("2,2", [2])])
def test_k(text: str, ks: list[int]) -> None:
    assert parse_k(text, 16) == ks
    assert (parse_k(None, 16), parse_k(None, 5)) == ([1, 4, 16], [1, 4])


@pytest.mark.parametrize("text", ["", "0", "17", "1,,2", "1;2", "a", "-1", "1.5", "²"])
def test_a_k_that_cannot_be_estimated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected whole numbers from 1 to --samples 16"):
        parse_k(text, 16)


# ------------------------------------------------------------------------------------------------- starting RL from it


def test_the_statistics_know_what_the_scan_says(tmp_path: Path) -> None:
    path = str(tmp_path / "scan.parquet")
    write_rows(Path(path), [scanned(name, solved).as_row() for name, solved in [("b", 4), ("gone", 9), ("c", 16)]])
    prompts = [Prompt(name, (), "math", difficulty=2, source="rl.jsonl") for name in "abc"]
    found = read_scan(path)
    assert found == {"b": (16, 4), "gone": (16, 9), "c": (16, 16)}
    assert check_matches(path, found, prompts) == 2
    sampler = Watched(prompts, "signal", group_size=4, seed=0)
    sampler.observe_scan(found)
    assert [(row, size) for row, _, size in sampler.groups] == [(1, 4)] * 4 + [(2, 4)] * 4
    assert len({solved for row, solved, _ in sampler.groups if row == 1}) > 1  # not all that solve in one group
    views = [sampler.stats.view(row, 0) for row in range(3)]
    assert [(view.attempts, view.solves, view.last_version) for view in views] == [(0, 0, 0), (16, 4, 0), (16, 16, 0)]
    assert views[1].pass_rate < views[0].pass_rate < views[2].pass_rate  # the unseen one has the prior of its kind
    drawn = [sampler.draw("math", 0) for _ in range(2)]
    sampler.observe_scan({})  # of no scan, with draws in flight
    assert [sampler.stats.view(row, 0) for row in range(3)] == views
    assert {*drawn, sampler.draw("math", 0)} == {0, 1, 2}


def test_what_was_all_or_nothing_in_a_scan_waits_for_its_retest() -> None:
    """Of 400 prompts 60 % are solved, 30 % unsolvable, 10 % useful; RL's groups are larger than the scan's."""
    prompts = [Prompt(str(index), (), "math") for index in range(400)]
    known = {str(index): (4, 2 if index % 10 == 0 else 4 * (index % 10 < 7)) for index in range(400)}
    sampler = PromptSampler(prompts, "signal", group_size=8, seed=0)
    sampler.observe_scan(known)
    drawn = [sampler.draw("math", 0) for _ in range(30)]
    assert sum(row % 10 == 0 for row in drawn) >= 28  # a few draws go to easy ones whatever is known


class Watched(PromptSampler):
    """A sampler that remembers the groups that it was given: row, solved, size."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.groups: list[tuple[int, int, int]] = []

    def observe(self, row: int, outcomes: Sequence[bool] | None, version: int) -> None:
        assert outcomes is not None
        assert version == 0
        self.groups.append((row, sum(outcomes), len(outcomes)))
        super().observe(row, outcomes, version)


def test_a_scan_of_other_prompts_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^rl\.start_from_scan: s\.parquet: none of its 1 prompts is among the 2 of"):
        check_matches("s.parquet", {"x": (4, 1)}, [Prompt("a", ()), Prompt("b", ())])


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (None, "s.parquet: no such file; `posttrain passk` writes one"),
        (b"no parquet", "s.parquet: no Parquet file that can be read ("),
        ([{"prompt_id": "a", "samples": 4}], "s.parquet: expected the columns prompt_id, samples, solved (there: "),
        (
            [{"prompt_id": "a", "samples": 4, "solved": 1}, {"prompt_id": "b", "samples": 4, "solved": 5}],
            "s.parquet:2: field 'solved': 5: expected 0 to samples=4",
        ),
        ([{"prompt_id": 7, "samples": 4, "solved": 1}], "s.parquet:1: expected a text and two whole numbers in "),
        ([{"prompt_id": "a", "samples": None, "solved": 1}], "s.parquet:1: expected a text and two whole numbers in "),
    ],
)
def test_a_file_that_is_no_scan(rows: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(rows, bytes):
        Path("s.parquet").write_bytes(rows)
    elif rows is not None:
        write_rows(Path("s.parquet"), rows)
    with pytest.raises(DataError) as error:
        read_scan("s.parquet")
    assert str(error.value).startswith(f"rl.start_from_scan: {line}")
    assert "\n" not in str(error.value)
