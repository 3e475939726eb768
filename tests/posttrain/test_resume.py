"""A run that is killed again and again and continued from its checkpoints, under virtual time."""

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curricula.instructions import Instruction, InstructionPools
from curricula.row_sets import NONE
from curricula.rows import Row
from curricula.sampler import PromptSampler
from curricula.stream import PromptStream
from curricula.window import PromptWindow
from posttrain.config import RLConfig
from posttrain.ledger import Ledger, Watermark
from posttrain.resume import begun_groups, pending_draws
from posttrain.rl import Controller, Step
from posttrain.rl_state import UNDER_WAY, RLState
from posttrain.slots import Draw, Judged
from rollouts.errors import CheckpointError
from rollouts.recorder import write_shard
from rollouts.types import Prompt, Rollout, RolloutGroup
from tests.posttrain.simulation import (
    Begun,
    Sampled,
    SimulatedWorkers,
    Timing,
    make_prompts,
    make_run,
    mixing,
    simulate,
)

PROMPTS = make_prompts(math=300, code=300)
RATE = mixing(math=0.9, code=0.4)


@dataclass(frozen=True)
class Checkpoint:
    """What the stage writes, with the groups that its shards hold."""

    version: int
    sampler: dict[str, np.ndarray]
    controller: dict[str, Any]
    watermark: dict[str, Any]
    groups: dict[int, Judged]
    begun: dict[int, Begun]


@dataclass
class Lineage:
    """A run over all of its lives; `batches` are those that led to the newest checkpoint."""

    path: Path
    config: RLConfig
    prompts: list[Prompt] = field(default_factory=lambda: PROMPTS)
    checkpoint: Checkpoint | None = None
    batches: list[list[Sampled]] = field(default_factory=list)
    lives: int = 0
    per_token: float = 0.01  # seconds
    rate: Callable[[Prompt, int], float] = RATE
    window: int | None = None  # on an endless stream, in the place of the prompts
    fresh_lengths: bool = False  # a draw that is made in another life has another length, as without a seed of its own
    goes_on: bool = False  # what was under way, from where it stood

    def sampler(self) -> PromptSampler:
        """As the stage makes it, before its statistics are restored."""
        prompts: Sequence[Prompt] | PromptWindow = self.prompts
        if self.window is not None:
            saved = self.path.with_suffix(f".{self.checkpoint.version}") if self.checkpoint else None
            prompts = PromptWindow(endless(), self.window, checkpoint=saved)
        return PromptSampler(prompts, self.config.selection, self.config.group_size, seed=0)

    def live(
        self, seconds: float | None = None, lose_slow_ones: bool = False, stopped: bool = False, **changes: Any
    ) -> Controller:
        """Runs from the newest checkpoint for so many seconds, or to the end.

        Args:
            seconds: after which the life ends without a word.
            stopped: by Ctrl-C instead, so that there is a checkpoint wherever it stands.
            lose_slow_ones: forget the draws that were under way, as a naive resume does.
            changes: of the settings, from now on.
        """
        self.config = self.config.model_copy(update=changes)
        version = self.checkpoint.version if self.checkpoint else 0
        del self.batches[version:]
        self.lives += 1
        sampler = self.sampler()
        # Latencies differ from life to life; lengths and outcomes are those of the draw, unless lengths are fresh.
        timing = Timing(per_token=self.per_token * (1 + 0.1 * (self.lives % 7)))
        luck = self.lives if self.fresh_lengths else 0
        workers = SimulatedWorkers(
            self.rate, self.config.group_size, timing=timing, latency_seed=luck,
            trainer_version=version, version=version,
            begun=self.checkpoint.begun if self.checkpoint and self.goes_on else {},
        )  # fmt: skip
        ledger = Ledger(self.path)
        saved = self.checkpoint
        mark = Watermark.from_json(saved.watermark) if saved else Watermark()
        ledger.begin(version, mark)
        controller = Controller(self.config, sampler, workers, ledger, version)
        if saved:
            sampler.load_state_dict(saved.sampler)
            rows = {prompt.prompt_id: row for row, prompt in enumerate(sampler.prompts)}
            pending = []
            for was in mark.pending:
                if was.state == "admitted":
                    pending.append((saved.groups[was.draw_id].draw, saved.groups[was.draw_id]))
                elif lose_slow_ones:
                    ledger.judged(was.draw_id, "rejected", "lost", 0, 0, 0)
                else:
                    row = rows[was.prompt_id]
                    pending.append((Draw(was.draw_id, row, sampler.prompts[row], was.version), None))
            oldest = {draw_id: begun.spans[0][2] for draw_id, begun in workers.begun.items() if begun.spans}
            controller.restore(saved.controller, mark.next_draw, pending, oldest)

        async def keep(version: int, now: bool = False) -> None:
            self.batches += workers.trained[len(self.batches) - (saved.version if saved else 0) :]
            if now or version % 3 == 0 or version == self.config.steps:
                mark = ledger.watermark(controller.next_draw)
                state = json.loads(json.dumps([controller.state_dict(), mark.as_json()]))
                begun = copy.deepcopy(workers.under_way)
                self.checkpoint = Checkpoint(
                    version, sampler.state_dict(), *state, dict(controller.slots._ready), begun
                )
                if sampler.window is not None:
                    folder = self.path.with_suffix(f".{version}")
                    folder.mkdir(exist_ok=True)
                    sampler.window.save(folder)

        async def main() -> None:
            async def report(step: Step) -> None: ...

            task = asyncio.ensure_future(controller.run(keep, report))
            await asyncio.wait({task}, timeout=seconds)
            if stopped:
                controller.stop()
                await task
                if self.checkpoint is None or self.checkpoint.version != controller.version:
                    await keep(controller.version, now=True)
            if task.done():
                await task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        simulate(main())
        ledger.close()
        return controller

    def killed(self, times: int, seed: int = 0, longest: float = 15.0, **kind: Any) -> "Lineage":
        """Ends so many lives at random moments, after `longest` seconds at most, then lets the run end."""
        rng = np.random.default_rng(seed)
        for _ in range(times):
            self.live(rng.uniform(2, longest), **kind)
        self.live(**kind)
        return self


def lineage(path: Path, per_token: float = 0.01, window: int | None = None, **settings: Any) -> Lineage:
    config = RLConfig(**({"group_size": 4, "prompts_per_step": 8, "steps": 30} | settings))
    return Lineage(path, config, per_token=per_token, window=window)


def endless() -> PromptStream:
    """Prompts like those of `PROMPTS`, without an end."""

    def rows() -> Iterator[Row]:
        return (Row({"number": number}, "endless", number + 1) for number in count())

    def read(row: Row) -> Prompt:
        capability, number = ("math", "code")[row.values["number"] % 2], row.values["number"] // 2
        return Prompt(f"{capability}-{number}", (), capability, difficulty=number % 3)

    return PromptStream("endless", rows, read, lambda _: True)


def trained(run: Lineage) -> list[list[tuple[int, str]]]:
    """Draw id and prompt of the groups of every step."""
    return [[(sampled.draw.draw_id, sampled.draw.prompt.prompt_id) for sampled in batch] for batch in run.batches]


@pytest.mark.parametrize(
    ("selection", "oversample", "window"),
    [
        ("signal", 1.0, None), ("signal", 1.5, None), ("uniform", 1.0, None), ("uniform", 1.5, None),
        ("signal", 1.0, 40), ("uniform", 1.5, 40),
    ],
)  # fmt: skip
def test_a_synchronous_run_trains_on_the_same_draws_as_without_interruption(
    tmp_path: Path, selection: str, oversample: float, window: int | None
) -> None:
    settings: dict[str, Any] = {
        "max_staleness": 0, "selection": selection, "oversample": oversample, "window": window,
    }  # fmt: skip
    whole = lineage(tmp_path / "whole.db", **settings).killed(0)
    broken = lineage(tmp_path / "broken.db", **settings).killed(8)
    assert broken.lives == 9
    assert len(whole.batches) == 30
    assert trained(broken) == trained(whole)
    stopped = lineage(tmp_path / "stopped.db", **settings).killed(8, longest=8, stopped=True)
    assert trained(stopped) == trained(whole)
    rows = [Ledger(run.path, read_only=True).rows("voided_by IS NULL") for run in (stopped, whole)]
    assert len({tuple((row.prompt_id, row.state, row.reason, row.step) for row in each) for each in rows}) == 1


@pytest.mark.parametrize("max_staleness", [1, 4])
@pytest.mark.parametrize("order", ["fifo", "ready"])
@pytest.mark.parametrize(("seed", "window"), [(0, None), (1, 100)])
def test_every_draw_is_trained_rejected_or_pending_exactly_once(
    tmp_path: Path, max_staleness: int, order: str, seed: int, window: int | None
) -> None:
    run = lineage(tmp_path / "x.db", max_staleness=max_staleness, order=order, window=window).killed(10, seed)
    assert run.checkpoint is not None
    ledger = Ledger(run.path, read_only=True)
    rows = ledger.rows("voided_by IS NULL")
    assert [row.draw_id for row in rows] == list(range(len(rows)))
    for step, batch in enumerate(run.batches, 1):
        assert {row.draw_id for row in rows if row.step == step} == {sampled.draw.draw_id for sampled in batch}
        assert {sampled.draw.draw_id: sampled.draw.prompt.prompt_id for sampled in batch} == {
            row.draw_id: row.prompt_id for row in rows if row.step == step
        }
        assert step - 1 - min(span[2] for sampled in batch for span in sampled.spans) <= max_staleness
    assert len(run.batches) == 30
    mark = Watermark.from_json(run.checkpoint.watermark)
    since = {row.draw_id for row in rows if row.change > mark.change}  # while the last weights went to the engines
    pending = {row.draw_id for row in rows if row.state in ("drawn", "admitted")} | since
    assert {draw_id for draw_id in pending if draw_id < mark.next_draw} == {row.draw_id for row in mark.pending}
    if order == "fifo":
        for capability in ("math", "code"):
            ids = [each.draw.draw_id for batch in run.batches for each in batch if each.draw.domain == capability]
            assert ids == sorted(ids)


def test_uniform_on_a_stream_draws_no_prompt_twice_over_all_lives(tmp_path: Path) -> None:
    run = lineage(tmp_path / "x.db", max_staleness=2, selection="uniform", window=64).killed(10)
    rows = Ledger(run.path, read_only=True).rows("voided_by IS NULL")
    assert len(rows) > 240
    for capability in ("math", "code"):
        drawn = [int(row.prompt_id.split("-")[1]) for row in rows if row.capability == capability]
        assert len(set(drawn)) == len(drawn)
        assert drawn == sorted(drawn)
        assert drawn[-1] < len(drawn) + 3  # none that has its turn is left out


def lengths(run: Lineage) -> np.ndarray:
    """Log-lengths of what was trained on."""
    return np.log([sampled.length for batch in run.batches for sampled in batch])


def test_kills_do_not_favour_short_answers(tmp_path: Path) -> None:
    # In FIFO order the slow ones are waited for before most checkpoints; as they are ready, they lie behind them.
    settings: dict[str, Any] = {"max_staleness": 4, "order": "ready", "steps": 60, "selection": "uniform"}
    runs = [lineage(tmp_path / name, per_token=0.02, **settings) for name in ("kept.db", "lost.db")]
    kept = lengths(runs[0].killed(25, longest=20))
    lost = lengths(runs[1].killed(25, longest=20, lose_slow_ones=True))
    error = 1 / np.sqrt(len(kept))  # lengths are log-normal: median 100, sigma 1
    assert len(kept) == len(lost) == 480
    assert abs(kept.mean() - np.log(100)) < 3 * error
    assert lost.mean() - np.log(100) < -3 * error  # the same test on a resume that forgets what was under way


def test_kills_favour_no_lengths_where_what_was_under_way_goes_on(tmp_path: Path) -> None:
    """Without seeds of their own, answers made again from the beginning are as long as any, and had been longer."""
    settings: dict[str, Any] = {"max_staleness": 4, "order": "ready", "steps": 60, "selection": "uniform"}
    found: dict[bool, list[float]] = {}
    for goes_on in (True, False):
        for seed in range(4 if goes_on else 2):
            run = lineage(tmp_path / f"{goes_on}{seed}.db", per_token=0.02, **settings)
            run.fresh_lengths, run.goes_on = True, goes_on
            found.setdefault(goes_on, []).append(lengths(run.killed(25, seed, longest=20)).mean() - np.log(100))
    error = 1 / np.sqrt(4 * 480)
    assert abs(np.mean(found[True])) < 3 * error
    assert np.mean(found[False]) < -4 * error


def test_settings_that_leave_no_room_reject_the_surplus_as_stale(tmp_path: Path) -> None:
    run = lineage(tmp_path / "x.db", max_staleness=4)
    run.live(60)
    assert run.checkpoint is not None
    pending = len(run.checkpoint.watermark["pending"])
    assert pending > 16
    run.live(max_staleness=1, prompts_per_step=6)
    counts = Ledger(run.path, read_only=True).counts()
    assert counts["rejected(stale)"] >= pending - 12
    assert [len(batch) for batch in run.batches][run.checkpoint.version - 3 :] == [6] * 3
    rows = Ledger(run.path, read_only=True).rows("voided_by IS NULL")
    assert [row.draw_id for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("group_size", [3, 6])
def test_judged_groups_of_another_size_are_stale_and_draws_under_way_are_made_at_the_new_one(
    tmp_path: Path, group_size: int
) -> None:
    run = lineage(tmp_path / "x.db", max_staleness=4, order="ready")
    run.live(60)
    assert run.checkpoint is not None
    before = run.checkpoint.version
    pending = {row["draw_id"]: row["state"] for row in run.checkpoint.watermark["pending"]}
    assert {"drawn", "admitted"} == set(pending.values())
    run.live(group_size=group_size)
    sizes = [{len(sampled.outcomes) for sampled in batch} for batch in run.batches]
    assert sizes == [{4}] * before + [{group_size}] * (30 - before)
    again = Ledger(run.path, read_only=True).rows("voided_by IS NULL")
    for row in again:
        if pending.get(row.draw_id) == "admitted":
            assert (row.state, row.reason, row.rollouts) == ("rejected", "stale", 4)
        elif pending.get(row.draw_id) == "drawn" and row.rollouts:
            assert row.rollouts == group_size
    assert len({row.draw_id for row in again if row.step and pending.get(row.draw_id) == "drawn"}) > 2


def test_of_a_group_that_was_larger_its_first_rollouts_go_on(tmp_path: Path) -> None:
    prompts = make_prompts(math=2)
    parts = [Rollout([7] * length, [True] * length, [-1.0] * length, [(0, length, 5)] if length else [], "", "")
             for length in (2, 0, 3)]  # fmt: skip
    groups = [RolloutGroup(0, prompts[0], [1], parts, 5), RolloutGroup(1, prompts[1], [1], parts[1:], 5)]
    write_shard(tmp_path / UNDER_WAY, groups)
    draws = [Draw(number, number, prompts[number], 5) for number in range(2)]
    found = begun_groups(tmp_path, draws, 4)
    assert {draw_id: group.rollouts for draw_id, group in found.items()} == {0: parts, 1: parts[1:]}
    assert {draw_id: group.rollouts for draw_id, group in begun_groups(tmp_path, draws, 1).items()} == {0: parts[:1]}


def test_a_synchronous_run_may_go_on_from_an_asynchronous_one(tmp_path: Path) -> None:
    run = lineage(tmp_path / "x.db", max_staleness=3)
    run.live(60)
    run.live(max_staleness=0)
    assert len(run.batches) == 30
    assert {len(batch) for batch in run.batches} == {8}


def test_a_capability_that_lends_its_share_still_does(tmp_path: Path) -> None:
    settings = {"max_staleness": 1, "max_rejected_in_a_row": 20, "retest_every": 100}
    run = lineage(tmp_path / "x.db", **settings)
    run.prompts, run.rate = make_prompts(math=300, useless=300), mixing(math=0.9, useless=0.0)
    run.live(40)
    assert run.checkpoint is not None
    assert list(run.checkpoint.controller["lent_since"]) == ["useless"]
    controller = run.live()
    assert controller.slots.lent == {"useless"}
    assert {sampled.draw.domain for batch in run.batches[-3:] for sampled in batch} == {"math"}


@pytest.mark.parametrize("kind", [{"longest": 200}, {"longest": 60, "stopped": True}])
def test_a_synchronous_run_tries_again_who_lends_its_share_when_it_would_have(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    runs = []
    for times in (0, 8):
        run = lineage(tmp_path / f"{times}.db", max_staleness=0, max_rejected_in_a_row=10, retest_every=3)
        run.prompts = make_prompts(math=300, late=300)
        run.rate = lambda prompt, version: 0.5 if prompt.capability == "math" or version >= 14 else 0.0
        runs.append(run.killed(times, **kind))
    whole, broken = runs
    lending = [{sampled.draw.domain for sampled in batch} == {"math"} for batch in whole.batches]
    assert sum(lending) > 10
    assert not lending[-1]
    assert trained(broken) == trained(whole)


@pytest.mark.parametrize(("batch", "kept"), [(8, 16), (6, 6)])
def test_what_has_borrowed_a_share_is_stale_only_where_settings_have_changed(
    tmp_path: Path, batch: int, kept: int
) -> None:
    """16 draws of `math` are pending, of which it has 8 slots since `code` has its share back."""
    state = make_run(tmp_path / "a.db", PROMPTS, SimulatedWorkers(RATE), max_staleness=1).controller.state_dict()
    run = make_run(tmp_path / "b.db", PROMPTS, SimulatedWorkers(RATE), max_staleness=1, prompts_per_step=batch)
    for draw_id in range(16):
        run.ledger.drawn(draw_id, f"math-{draw_id}", "math", 0)
    draws = [Draw(draw_id, draw_id, PROMPTS[draw_id], 0) for draw_id in range(16)]
    run.controller.restore(json.loads(json.dumps(state)), 16, [(draw, None) for draw in draws])
    assert len(run.ledger.rows("state = 'drawn'")) == kept
    assert len(run.ledger.rows("reason = 'stale'")) == 16 - kept


def test_capabilities_that_lent_their_share_to_one_that_is_gone_have_it_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x.db", make_prompts(code=40), SimulatedWorkers(RATE), steps=3, max_rejected_in_a_row=30)
    state = {"without_signal": {"math": 0, "code": 30}, "lent_since": {"code": 4}, "probing": ["code"]}
    run.controller.restore(state, 0, [])
    assert [len(batch) for batch in run.go().batches] == [8] * 3


def test_a_group_that_grew_too_old_while_its_capability_lends_is_stale(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x.db", make_prompts(math=9, code=9), SimulatedWorkers(RATE), max_staleness=1)
    controller, sampler = run.controller, run.sampler
    pending: list[tuple[Draw, Judged | None]] = []
    for draw_id, oldest in enumerate((3, 4)):
        draw = Draw(draw_id, draw_id + 9, sampler.prompts[draw_id + 9], oldest)
        run.ledger.drawn(draw_id, draw.prompt.prompt_id, "code", oldest)
        pending.append((draw, Judged(draw, (True, False, True, False), 0.5, oldest, 8, 0, None)))
    controller.version = controller.synced = 5
    controller.restore({"without_signal": {"code": 64}, "lent_since": {"code": 4}, "probing": []}, 2, pending)
    assert [(row.state, row.reason) for row in run.ledger.rows()] == [("rejected", "stale"), ("drawn", None)]
    assert list(controller.slots._ready) == [1]


def test_a_judged_group_is_kept_though_its_prompt_has_left_the_window(tmp_path: Path) -> None:
    sampler = PromptSampler(PromptWindow(endless(), 20), "uniform", group_size=2, seed=0)
    left = Prompt("math-900", ({"role": "user", "content": "as it was asked"},), "math", instruction="short")
    ledger = Ledger(tmp_path / "x.db")
    ledger.begin(0, Watermark())
    for draw_id, prompt_id in enumerate(["math-900", "math-3", "math-4", "math-901"]):
        ledger.drawn(draw_id, prompt_id, "math", 5, None if draw_id else "short")
        if draw_id < 2:
            ledger.judged(draw_id, "admitted", None, 1, 2, 4)
    rollouts = [
        Rollout([7], [True], [-1.0], [(0, 1, 5)], "stop", "x", float(solved), solved) for solved in (True, False)
    ]
    groups = [RolloutGroup(0, left, [1], rollouts), RolloutGroup(1, sampler.prompts[6], [1], rollouts)]
    write_shard(tmp_path / "a.parquet", groups)
    state = RLState(5, {}, {}, ledger.watermark(4), ("a.parquet",), {})
    pending = pending_draws(state, sampler, InstructionPools(), tmp_path)
    (first, its_group), (second, other), (third, none) = pending.draws
    assert (first, its_group) == (Draw(0, NONE, left, 5), groups[0])
    assert (second, other) == (Draw(1, 6, sampler.prompts[6], 5), groups[1])
    assert (third, none) == (Draw(2, 8, sampler.prompts[8], 5), None)
    assert [row.prompt_id for row in pending.removed] == ["math-901"]  # under way, and can not be asked again
    assert pending.admitted == 2
    whole = PromptSampler(sampler.prompts, "uniform", group_size=2, seed=0)
    removed = pending_draws(state, whole, InstructionPools(), tmp_path).removed
    assert [row.prompt_id for row in removed] == ["math-900", "math-901"]


@pytest.mark.parametrize(
    ("shard", "problem"),
    [(None, "do not hold the group of draw 1; choose another one"), (b"PAR1", "cannot be read (")],
    ids=["another's", "cut off"],
)
def test_shards_that_lack_a_group_are_one_line(tmp_path: Path, shard: bytes | None, problem: str) -> None:
    sampler = PromptSampler(make_prompts(math=2), "uniform", group_size=2, seed=0)
    ledger = Ledger(tmp_path / "x.db")
    ledger.begin(0, Watermark())
    for draw_id in range(2):
        ledger.drawn(draw_id, f"math-{draw_id}", "math", 0)
        ledger.judged(draw_id, "admitted", None, 1, 2, 2)
    rollouts = [Rollout([7], [True], [-1.0], [(0, 1, 0)], "stop", "x")] * 2
    write_shard(tmp_path / "a.parquet", [RolloutGroup(0, sampler.prompts[0], [1], rollouts)])
    if shard is not None:
        (tmp_path / "a.parquet").write_bytes(shard)
    state = RLState(0, {}, {}, ledger.watermark(2), ("a.parquet",), {})
    with pytest.raises(CheckpointError) as error:
        pending_draws(state, sampler, InstructionPools(), tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: the shards of the checkpoint {problem}")
    assert "\n" not in str(error.value)


def test_pending_draws_are_asked_under_the_instructions_that_the_ledger_names(tmp_path: Path) -> None:
    """Whatever pools and seed are by then; what is not trained with any more is not asked again."""
    sampler = PromptSampler(make_prompts(math=6, code=1), "uniform", group_size=2, seed=0)
    asked = [Instruction("a", "A."), Instruction("b", "B."), Instruction("c", "C."), Instruction("d", "D.")]
    ledger = Ledger(tmp_path / "x.db")
    ledger.begin(0, Watermark())
    for draw_id, instruction in enumerate(["a", "b", "c", "d", None]):
        ledger.drawn(draw_id, f"math-{draw_id}", "math", 0, instruction)
    ledger.drawn(5, "code-0", "math", 0)  # another capability by now
    ledger.drawn(6, "math-5", "math", 0, "b")
    prompts = [asked[1].ask(sampler.prompts[row]) for row in (1, 5)]
    rollouts = [
        Rollout([7], [True], [-1.0], [(0, 1, 0)], "stop", "x", float(solved), solved) for solved in (True, False)
    ]
    groups = [RolloutGroup(draw, prompt, [1], rollouts, 0) for draw, prompt in zip((1, 6), prompts, strict=True)]
    for draw in (1, 6):
        ledger.judged(draw, "admitted", None, 1, 2, 2)
    write_shard(tmp_path / "a.parquet", groups)
    state = RLState(0, {}, {}, ledger.watermark(7), ("a.parquet",), {})
    now = [*asked[:2], replace(asked[2], train=False), Instruction("e", "E.")]
    for seed in range(3):
        pending = pending_draws(state, sampler, InstructionPools({"math": now}, seed), tmp_path)
        assert [(draw.draw_id, draw.prompt.instruction) for draw, _ in pending.draws] == [
            (0, "a"), (1, "b"), (4, None), (6, "b"),
        ]  # fmt: skip
        assert pending.draws[0][0].prompt.messages == ({"role": "system", "content": "A."},)
        assert [group for _, group in pending.draws] == [None, groups[0], None, groups[1]]
        assert [row.draw_id for row in pending.removed] == [2, 3, 5]
