"""The asynchronous loop, run by the real controller, sampler, slots and ledger under virtual time."""

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curricula.instructions import Instruction, InstructionPools
from posttrain.slots import Draw
from rollouts.errors import EngineError, JudgeError, NoSignalError
from rollouts.types import Prompt
from tests.posttrain.simulation import (
    DeadlockError,
    Run,
    Sampled,
    SimulatedWorkers,
    Timing,
    make_prompts,
    make_run,
    mixing,
    simulate,
)

EASY_AND_HARD = mixing(easy=0.9 / 0.875, hard=0.2 / 0.875)  # a group of 4 at 0.5 is mixed with a chance of 0.875


def run_on(
    tmp_path: Path,
    rate: Callable[[Prompt, int], float] = EASY_AND_HARD,
    *,
    counts: dict[str, int] | None = None,
    seed: int = 0,
    workers: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    path = tmp_path / f"{len(list(tmp_path.glob('*.db')))}.db"
    prompts = make_prompts(**(counts or {"easy": 400, "hard": 400}))
    simulated = SimulatedWorkers(rate, **(workers or {}))
    return make_run(path, prompts, simulated, seed=seed, **({"selection": "dynamic_sampling"} | settings))


def shares(batch: list[Sampled]) -> dict[str, int]:
    return dict(Counter(sampled.draw.domain for sampled in batch))


def trained_ids(run: Run) -> list[int]:
    return [sampled.draw.draw_id for batch in run.batches for sampled in batch]


def rows(run: Run) -> list[tuple[Any, ...]]:
    return run.ledger._db.execute(
        "SELECT draw_id, state, reason, solved, rollouts, step, version FROM draws ORDER BY draw_id"
    ).fetchall()


# ------------------------------------------------------------------------------------------------- the simulation


def test_virtual_time_jumps_and_a_deadlock_is_an_error() -> None:
    async def sleep_for_a_day() -> float:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(86400.5))
        return asyncio.get_running_loop().time()

    assert simulate(sleep_for_a_day()) == pytest.approx(86400.5)

    async def wait_for_nobody() -> None:
        await asyncio.sleep(2)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"t=2\.000"):
        simulate(wait_for_nobody())


def test_the_same_seeds_give_the_same_events(tmp_path: Path) -> None:
    first, again = (run_on(tmp_path, steps=8, max_staleness=2).go() for _ in range(2))
    assert first.workers.events == again.workers.events
    other = run_on(tmp_path, steps=8, max_staleness=2, workers={"latency_seed": 1}).go()
    assert first.workers.events != other.workers.events


# --------------------------------------------------------------------------------------- staleness, quotas, order


@pytest.mark.parametrize("order", ["fifo", "ready"])
@pytest.mark.parametrize("max_staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("train", [0.2, 10.0])
def test_staleness_and_quotas_hold_at_unequal_rejection(
    tmp_path: Path, max_staleness: int, order: str, train: float
) -> None:
    """With common slots this deadlocks: the surplus of the capability with 10 % rejection would hold them all."""
    workers = {"timing": Timing(train=train)}
    run = run_on(tmp_path, max_staleness=max_staleness, order=order, steps=25, workers=workers).go()
    assert [shares(batch) for batch in run.batches] == [{"easy": 4, "hard": 4}] * 25
    assert max(run.staleness()) <= max_staleness
    assert [step.staleness for step in run.steps] == run.staleness()
    assert run.controller.totals.max_staleness_seen == max(run.staleness())
    if train == 10.0:  # generation is ahead: the bound is made use of
        assert max(run.staleness()) == max_staleness

    judged = defaultdict(list)
    for sampled in run.workers.sampled.values():
        judged[sampled.draw.domain].append(0 < sum(sampled.outcomes) < 4)
    assert np.mean(judged["easy"]) == pytest.approx(0.9, abs=0.1)
    assert np.mean(judged["hard"]) == pytest.approx(0.2, abs=0.1)


def test_unequal_quotas_are_exact(tmp_path: Path) -> None:
    quotas = {"easy": 3.0, "hard": 1.0}
    run = run_on(tmp_path, quotas=quotas, prompts_per_step=6, max_staleness=2, steps=15).go()
    assert [shares(batch) for batch in run.batches] == [{"easy": 5, "hard": 1}] * 15  # 4.5 and 1.5; a tie goes first


def test_prompts_with_an_image_have_a_quota_of_their_own(tmp_path: Path) -> None:
    quotas = {"charts": 2.0, "charts/image": 4.0}
    prompts = make_prompts(charts=200)
    prompts += [replace(each, prompt_id=f"seen-{each.prompt_id}", modality="image") for each in prompts]
    workers = SimulatedWorkers(lambda prompt, version: 0.5 if prompt.modality == "text" else 0.1)
    settings = {"quotas": quotas, "prompts_per_step": 6, "max_staleness": 2, "steps": 9}
    run = make_run(tmp_path / "l.db", prompts, workers, **settings).go()
    assert [shares(batch) for batch in run.batches] == [{"charts": 2, "charts/image": 4}] * 9
    modalities = [[sampled.draw.prompt.modality for sampled in batch] for batch in run.batches]
    assert [Counter(batch) for batch in modalities] == [{"text": 2, "image": 4}] * 9
    assert {row.capability for row in run.ledger.rows()} == set(quotas)


def test_tokens_span_updates_and_count_with_their_oldest(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=4, steps=25).go()
    spans = [sampled.spans for batch in run.batches for sampled in batch]
    assert sum(len(versions) > 1 for versions in spans) > 20
    assert max(run.staleness()) == 4


def test_no_more_draws_are_under_way_than_there_are_slots(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=2, prompts_per_step=8, steps=15).go()
    live: dict[str, set[int]] = {"easy": set(), "hard": set()}
    most = 0
    batches = iter(run.batches)
    mixed = {draw_id for draw_id, sampled in run.workers.sampled.items() if 0 < sum(sampled.outcomes) < 4}
    name = {draw_id: sampled.draw.domain for draw_id, sampled in run.workers.sampled.items()}
    for event in run.workers.events:
        if event.what == "drawn" and event.draw_id in name:
            live[name[event.draw_id]].add(event.draw_id)
        elif event.what == "judged" and event.draw_id not in mixed:
            live[name[event.draw_id]].discard(event.draw_id)
        elif event.what == "updated":
            for sampled in next(batches):
                live[sampled.draw.domain].discard(sampled.draw.draw_id)
        assert max(len(held) for held in live.values()) <= 3 * 4
        most = max(most, *(len(held) for held in live.values()))
    assert most == 3 * 4


def test_fifo_trains_in_draw_order_and_favours_no_length(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=2, steps=40).go()
    for capability in ("easy", "hard"):
        trained = [s.draw.draw_id for batch in run.batches for s in batch if s.draw.domain == capability]
        assert trained == sorted(trained)
        # What was trained is all that could teach among the draws up to the last one trained: no long one was skipped.
        last = trained[-1]
        mixed = [
            draw_id
            for draw_id, sampled in sorted(run.workers.sampled.items())
            if sampled.draw.domain == capability and 0 < sum(sampled.outcomes) < 4 and draw_id <= last
        ]
        assert trained == mixed
        lengths = [run.workers.length(draw_id) for draw_id in trained]
        everything = [run.workers.length(draw_id) for draw_id in range(2000)]
        assert np.mean(lengths) == pytest.approx(np.mean(everything), rel=0.25)
        assert max(lengths) > 5 * np.median(lengths)  # the tail is there


def test_a_batch_is_in_draw_order(tmp_path: Path) -> None:
    for order in ("fifo", "ready"):
        run = run_on(tmp_path, max_staleness=2, steps=10, order=order).go()
        for batch in run.batches:
            ids = [sampled.draw.draw_id for sampled in batch]
            assert ids == sorted(ids)


def test_ready_is_faster_and_still_loses_nothing(tmp_path: Path) -> None:
    fifo, ready = (run_on(tmp_path, max_staleness=4, steps=40, order=order).go() for order in ("fifo", "ready"))
    assert ready.seconds < 0.9 * fifo.seconds
    assert "stale" not in ready.controller.totals.rejected
    trained, mixed = (
        set(trained_ids(ready)),
        {draw_id for draw_id, sampled in ready.workers.sampled.items() if 0 < sum(sampled.outcomes) < 4},
    )
    left = mixed - trained  # only what was still within the bound at the end
    assert all(ready.workers.sampled[draw_id].draw.version >= 40 - 4 for draw_id in left)


# ------------------------------------------------------------------------------------------------- concurrency


def test_async_overlaps_generation_and_training(tmp_path: Path) -> None:
    timing = Timing(tail=0.5, train=4.0)
    seconds = {}
    for max_staleness in (0, 1, 2):
        run = run_on(
            tmp_path, mixing(easy=1.0, hard=1.0), max_staleness=max_staleness, steps=30, workers={"timing": timing}
        )
        seconds[max_staleness] = run.go().seconds
    assert seconds[1] < 0.75 * seconds[0]
    assert seconds[2] <= seconds[1]
    assert seconds[2] < 30 * (4.0 + 0.05) * 1.1  # the trainer hardly ever waits


def test_a_rejected_group_frees_its_slot_when_it_completes(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=1, steps=10, workers={"timing": Timing(train=20.0)}).go()
    training, refills = False, 0
    for index, event in enumerate(run.workers.events):
        if event.what in ("train", "trained"):
            training = event.what == "train"
        sampled = run.workers.sampled.get(event.draw_id)
        if event.what == "judged" and sampled and sum(sampled.outcomes) in (0, 4):
            later = run.workers.events[index + 1 :]
            refill = next(other for other in later if other.what == "drawn")
            assert refill.time == event.time  # at once, not when it would have headed the queue
            refills += training
    assert refills > 100


def test_a_refill_is_drawn_with_the_newest_statistics(tmp_path: Path) -> None:
    """Each draw's posterior already holds the group whose rejection made room for it."""
    counts = {"easy": 150, "hard": 150}  # in a large set several groups are entered together
    run = run_on(tmp_path, max_staleness=2, steps=5, selection="signal", counts=counts)
    seen: list[tuple[int, int]] = []
    draw = run.sampler.draw

    def counted(capability: str, version: int) -> int:
        finished = sum(event.what == "judged" for event in run.workers.events)
        attempts = run.sampler._stats.attempts_P.sum()
        seen.append((int(attempts > 0), finished))
        assert attempts == 4 * finished
        return draw(capability, version)

    run.sampler.draw = counted  # type: ignore[method-assign]
    run.go()
    assert seen[0] == (0, 0)
    assert seen[-1][1] > 40


# ------------------------------------------------------------------------------------------- synchronous, on-policy


def test_synchronous_rounds_draw_only_when_nothing_is_outstanding(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=0, steps=12)
    observed: list[int] = []
    observe = run.sampler.observe

    def noting(row: int, outcomes: Any, version: int) -> None:
        observed.append(row)
        observe(row, outcomes, version)

    run.sampler.observe = noting  # type: ignore[method-assign]
    run.go()
    outstanding: set[int] = set()
    rounds, updating = 0, False
    for event in run.workers.events:
        if event.what == "judged":
            outstanding.remove(event.draw_id)
            closed = not outstanding
        elif event.what == "drawn":
            if event.draw_id == 0 or closed:
                rounds, closed = rounds + 1, False
            assert not updating
            outstanding.add(event.draw_id)
        elif event.what in ("train", "update"):
            assert not outstanding
            updating = True
        elif event.what == "updated":
            updating = False
    assert rounds > 24  # refills went in rounds of their own
    assert max(run.staleness()) == 0
    in_draw_order = [run.workers.sampled[draw_id].draw.row for draw_id in sorted(run.workers.sampled)]
    assert observed == in_draw_order


@pytest.mark.parametrize("selection", ["dynamic_sampling", "pools", "signal"])
def test_synchronous_result_does_not_depend_on_latencies(tmp_path: Path, selection: str) -> None:
    runs = [
        run_on(
            tmp_path, max_staleness=0, steps=12, selection=selection, oversample=1.5,
            workers={"latency_seed": seed, "judge_failures": 0.1, "timing": Timing(tail=tail)},
        ).go()
        for seed, tail in ((0, 1.0), (1, 1.0), (2, 2.0))
    ]  # fmt: skip
    assert len({run.seconds for run in runs}) == 3
    assert rows(runs[0]) == rows(runs[1]) == rows(runs[2])
    assert trained_ids(runs[0]) == trained_ids(runs[1]) == trained_ids(runs[2])
    states = [run.sampler.state_dict() for run in runs]
    for name, column in states[0].items():
        np.testing.assert_array_equal(column, states[1][name])
        np.testing.assert_array_equal(column, states[2][name])
    assert rows(runs[0]) != rows(run_on(tmp_path, max_staleness=0, steps=12, selection=selection, seed=1).go())


def test_synchronous_run_is_the_same_as_a_plain_loop(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=0, steps=10, selection="signal").go()
    plain = run_on(tmp_path, max_staleness=0, steps=10, selection="signal")
    sampler, draw_id, batches = plain.sampler, 0, []
    for version in range(10):
        kept: dict[str, list[int]] = {"easy": [], "hard": []}
        while any(len(ids) < 4 for ids in kept.values()):
            draws = []
            for capability, ids in kept.items():
                for _ in range(4 - len(ids)):
                    row = sampler.draw(capability, version)
                    draws.append(Draw(draw_id, row, sampler.prompts[row], version))
                    draw_id += 1
            for draw in draws:
                outcomes = plain.workers.outcomes(draw)
                sampler.observe(draw.row, outcomes, version)
                if 0 < sum(outcomes) < len(outcomes):
                    kept[draw.domain].append(draw.draw_id)
        batches.append(sorted(kept["easy"] + kept["hard"]))
    assert [[sampled.draw.draw_id for sampled in batch] for batch in run.batches] == batches


def test_oversampling_keeps_the_first_admitted_in_draw_order(tmp_path: Path) -> None:
    plain, more = (
        run_on(tmp_path, mixing(easy=0.9, hard=0.6), max_staleness=0, steps=15, oversample=oversample).go()
        for oversample in (1.0, 2.0)
    )
    assert more.seconds < plain.seconds
    assert [shares(batch) for batch in more.batches] == [{"easy": 4, "hard": 4}] * 15
    assert "surplus" not in plain.controller.totals.rejected
    by_version = defaultdict(list)
    for draw_id, state, reason, solved, rollouts, _, version in rows(more):
        assert rollouts == 4
        if 0 < solved < 4:
            by_version[version].append((draw_id, state, reason))
    surplus = 0
    for version, batch in enumerate(more.batches):
        for capability in ("easy", "hard"):
            kept = [sampled.draw.draw_id for sampled in batch if sampled.draw.domain == capability]
            mixed = [entry for entry in by_version[version] if more.workers.sampled[entry[0]].draw.domain == capability]
            assert [draw_id for draw_id, _, _ in mixed[:4]] == kept
            assert all(state == "trained" for _, state, _ in mixed[:4])
            assert all((state, reason) == ("rejected", "surplus") for _, state, reason in mixed[4:])
            surplus += len(mixed) - 4
    assert surplus == more.controller.totals.rejected["surplus"] > 20


# ------------------------------------------------------------------------------------------------- lending


def signal_from(version: int) -> Callable[[Prompt, int], float]:
    """The capability `hard` gives no signal before a version; `easy` always does."""
    return lambda prompt, now: 0.5 if prompt.capability == "easy" or now >= version else 0.0


@pytest.mark.parametrize("order", ["fifo", "ready"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("latency_seed", [1, 2])
def test_a_capability_without_signal_lends_its_share_until_it_has_some(
    tmp_path: Path, max_staleness: int, order: str, latency_seed: int
) -> None:
    run = run_on(
        tmp_path, signal_from(12), max_staleness=max_staleness, order=order, steps=40, retest_every=5,
        max_rejected_in_a_row=20, workers={"latency_seed": latency_seed, "timing": Timing(tail=1.5)},
    ).go()  # fmt: skip
    given = [shares(batch) for batch in run.batches]
    assert {"easy": 8} in given[:6]
    first = given.index({"easy": 8})
    back = next(index for index in range(first, 40) if given[index].get("hard"))
    assert set(map(str, given[first:back])) == {str({"easy": 8})}
    assert 12 <= back <= 12 + 2 * 5 + 2 * max_staleness + 2
    assert given[back:] == [{"easy": 4, "hard": 4}] * (40 - back)
    assert max(run.staleness()) <= max_staleness
    # Before it lent its share it tried as often as configured, and each re-test cost one group.
    hard = [row for row in rows(run) if row[6] < 12 and run.workers.sampled.get(row[0]) is not None]
    tried = [row for row in hard if run.workers.sampled[row[0]].draw.domain == "hard"]
    assert 20 <= len(tried) <= 20 + (max_staleness + 1) * 4 + 3


def test_who_lends_its_share_and_has_it_back_is_told_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_on(tmp_path, signal_from(6), steps=16, retest_every=4, max_rejected_in_a_row=20).go()
    lends, back = capsys.readouterr().err.splitlines()
    assert lends == (
        "hard lends its share of the batch to the others: 20 of its groups in a row were rejected; it is tried again "
        "every 4 steps (rl.retest_every)"
    )
    assert back == "hard gives a signal again, and has its share of the batch back"
    lending = [step.scalars()["lending"] for step in run.steps]
    assert lending == [1] * sum(lending) + [0] * (16 - sum(lending))
    assert 5 < sum(lending) < 13


def test_no_signal_anywhere_ends_the_run_with_the_histogram(tmp_path: Path) -> None:
    for max_staleness in (0, 1, 4):
        run = run_on(
            tmp_path, lambda prompt, version: 1.0 if prompt.capability == "easy" else 0.0,
            max_staleness=max_staleness, max_rejected_in_a_row=30,
        )  # fmt: skip
        with pytest.raises(NoSignalError) as caught:
            run.go()
        text = str(caught.value)
        assert "\n" not in text
        slots = (max_staleness + 1) * 8  # one may have borrowed the other's
        drawn = Counter(run.sampler.prompts[row].capability for row in run.sampler.stats.attempts_P.nonzero()[0])
        assert set(drawn) == {"easy", "hard"}
        assert len(run.drawn) <= 2 * 30 + 2 * slots
        rates = run.ledger.pass_rates()
        assert f"0.0-0.1: {rates.count(0.0)}, 0.9-1.0: {rates.count(1.0)}" in text
        assert f"{len(rates)} groups judged" in text
        assert min(rates.count(0.0), rates.count(1.0)) >= 30
        assert run.batches == []
        started = {event.draw_id for event in run.workers.of("drawn")}
        ended = {event.draw_id for what in ("judged", "cancelled") for event in run.workers.of(what)}
        assert started == ended


def test_truncated_groups_may_be_rejected(tmp_path: Path) -> None:
    run = run_on(tmp_path, truncated="reject", workers={"longest": 300}).go()
    assert run.controller.totals.rejected["truncated"] > 5
    assert max(sampled.length for batch in run.batches for sampled in batch) < 300
    kept = run_on(tmp_path, workers={"longest": 300}).go()
    assert kept.controller.totals.rejected["truncated"] == 0


def test_a_baseline_of_the_whole_batch_trains_on_equal_outcomes(tmp_path: Path) -> None:
    run = run_on(tmp_path, advantage="reinforce_pp").go()
    assert run.controller.totals.rejected.total() == 0
    assert any(len(set(sampled.outcomes)) == 1 for batch in run.batches for sampled in batch)


def test_uniform_trains_on_groups_without_an_advantage(tmp_path: Path) -> None:
    run = run_on(tmp_path, selection="uniform").go()
    assert run.controller.totals.rejected.total() == 0
    assert any(len(set(sampled.outcomes)) == 1 for batch in run.batches for sampled in batch)


def test_one_capability_alone_without_signal(tmp_path: Path) -> None:
    run = run_on(tmp_path, lambda prompt, version: 0.0, counts={"math": 50}, max_staleness=1, max_rejected_in_a_row=10)
    with pytest.raises(NoSignalError, match=r"math: 10\).*10 groups judged: 0\.0-0\.1: 10;"):
        run.go()
    assert len(run.drawn) <= 10 + 16


# ------------------------------------------------------------------------------------------------- failures


def test_a_failing_judge_is_a_rejection_and_no_outcome(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=1, steps=20, workers={"judge_failures": 0.2}).go()
    failed = {event.draw_id for event in run.workers.of("failed")}
    by_judge = {draw_id: row for draw_id, *row in rows(run) if row[1] == "judge"}
    assert set(by_judge) <= failed
    assert len(failed - set(by_judge)) == 0
    assert len(by_judge) == run.controller.totals.rejected["judge"] > 30
    assert all(row == ["rejected", "judge", 0, 0, None, row[-1]] for row in by_judge.values())
    assert not failed & set(trained_ids(run))
    observed = list(run.workers.sampled.values())
    stats = run.sampler.stats
    assert stats.attempts_P.sum() == 4 * len(observed)
    assert stats.solves_P.sum() == sum(sum(sampled.outcomes) for sampled in observed)


def test_a_judge_that_always_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=1, max_rejected_in_a_row=12, workers={"judge_failures": 1.0})
    with pytest.raises(JudgeError, match="no verdict on draw"):
        run.go()
    assert len(run.drawn) <= 2 * 12 + 2 * 16
    assert run.sampler.stats.attempts_P.sum() == 0


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_another_exception_of_a_worker_stops_the_run(tmp_path: Path, max_staleness: int) -> None:
    def fail(draw: Draw) -> Exception | None:
        return EngineError("generator 3 died") if draw.draw_id == 60 else None

    run = run_on(tmp_path, max_staleness=max_staleness, workers={"fail": fail})
    with pytest.raises(EngineError, match="generator 3 died"):
        run.go()
    ended = {event.draw_id for what in ("judged", "cancelled", "failed") for event in run.workers.of(what)}
    assert ended == set(run.drawn)


def test_a_failing_rollout_ends_the_training_under_way(tmp_path: Path) -> None:
    def fail(draw: Draw) -> Exception | None:
        return RuntimeError("a bug") if run.workers.of("train") else None

    run = run_on(tmp_path, max_staleness=4, workers={"fail": fail, "timing": Timing(train=1000.0)})
    with pytest.raises(RuntimeError, match="a bug"):
        run.go()
    assert [event.time for event in run.workers.of("train_cancelled")] == [run.seconds]
    assert run.seconds < 100


def test_a_failing_trainer_stops_the_run(tmp_path: Path) -> None:
    class Broken(SimulatedWorkers):
        async def train(self, batch: Any) -> Any:
            await asyncio.sleep(1)
            raise FloatingPointError("the gradient is not finite")

    workers = Broken(EASY_AND_HARD)
    run = make_run(tmp_path / "x.db", make_prompts(easy=50, hard=50), workers, max_staleness=1)
    with pytest.raises(FloatingPointError):
        run.go()
    assert len(workers.of("cancelled")) > 0
    assert run.ledger.counts().get("trained") is None


@pytest.mark.parametrize("order", ["fifo", "ready"])
def test_step_timeout_says_what_it_waits_for(tmp_path: Path, order: str) -> None:
    run = run_on(
        tmp_path, mixing(easy=1.0, hard=1.0), max_staleness=0, step_timeout=300.0, order=order,
        workers={"hang": lambda draw: draw.draw_id == 6, "timing": Timing(tail=0.1)},
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"waited 300 s \(rl.step_timeout\).*easy: 4 drawn.*hard: 4 drawn"):
        run.go()
    assert run.seconds == pytest.approx(300.0)
    run = run_on(
        tmp_path, mixing(easy=1.0, hard=1.0), max_staleness=1, step_timeout=300.0, order=order, group_size=4,
        workers={"hang": lambda draw: draw.prompt.capability == "hard", "timing": Timing(tail=0.1)},
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"easy: 8 drawn, 8 ready of 4, hard: 8 drawn, 0 ready of 4"):
        run.go()


# ------------------------------------------------------------------------------------------------- early stop


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_group_given_up_early_counts_as_far_as_it_was_made(tmp_path: Path, max_staleness: int) -> None:
    run = run_on(
        tmp_path, mixing(easy=1.0, hard=0.5), max_staleness=max_staleness, steps=15, early_stop=2,
        workers={"early_stop": 2},
    ).go()  # fmt: skip
    found = [(state, reason, rollouts) for _, state, reason, _, rollouts, _, _ in rows(run) if rollouts]
    assert {rollouts for state, _, rollouts in found if state in ("admitted", "trained")} == {4}
    assert {(reason, rollouts) for state, reason, rollouts in found if state == "rejected"} == {
        ("all_solved", 2), ("none_solved", 2),
    }  # fmt: skip
    assert run.sampler.stats.attempts_P.sum() == sum(rollouts for _, _, rollouts in found)
    assert max(run.staleness()) == max_staleness


# ------------------------------------------------------------------------------------------------- stop, the ledger


@pytest.mark.parametrize("train", [0.1, 60.0])
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_stop_ends_at_the_next_step_boundary(tmp_path: Path, max_staleness: int, train: float) -> None:
    run = run_on(tmp_path, max_staleness=max_staleness, workers={"timing": Timing(train=train)})
    run.go(lambda step: run.controller.stop() if step.version == 3 else None)
    assert run.controller.version == 3
    assert run.checkpoints == [1, 2, 3]
    assert len(run.batches) == len(run.workers.of("updated")) == 3
    ended = {event.draw_id for what in ("judged", "cancelled") for event in run.workers.of(what)}
    assert ended == set(run.drawn)


def test_stop_during_training_finishes_the_step(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=2, workers={"timing": Timing(train=60.0)})

    async def main() -> None:
        async def nothing(_: Any) -> None: ...

        running = asyncio.ensure_future(run.controller.run(nothing, nothing))
        await asyncio.sleep(100)  # the first step takes 60 s, and the second has begun
        assert [len(run.workers.of(what)) for what in ("train", "trained")] == [2, 1]
        run.controller.stop()
        await running
        assert len(asyncio.all_tasks()) == 1

    simulate(main())
    assert len(run.batches) == 2
    assert run.workers.version == 2


def test_every_draw_is_in_one_final_state(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=2, steps=20, workers={"judge_failures": 0.1}).go()
    table = {draw_id: row for draw_id, *row in rows(run)}
    assert list(table) == sorted(run.drawn) == list(range(len(run.drawn)))
    steps = {sampled.draw.draw_id: step for step, batch in enumerate(run.batches, 1) for sampled in batch}
    assert len(steps) == 20 * 8
    judged = {event.draw_id for event in run.workers.of("judged")}
    failed = {event.draw_id for event in run.workers.of("failed")}
    for draw_id, (state, reason, solved, _, step, version) in table.items():
        if draw_id in steps:
            assert (state, reason, step) == ("trained", None, steps[draw_id])
            assert 0 < solved < 4
            assert step - 1 - version <= 2
        else:
            assert step is None
            expected: tuple[str, str | None] = ("admitted", None)
            if draw_id in failed:
                expected = ("rejected", "judge")
            elif draw_id not in judged:
                expected = ("drawn", None)  # under way when the run ended
            elif solved in (0, 4):
                expected = ("rejected", "all_solved" if solved else "none_solved")
            if draw_id in judged:
                assert solved == sum(run.workers.sampled[draw_id].outcomes)
            assert (state, reason) == expected
    counts = run.ledger.counts()
    rejected = run.controller.totals.rejected
    assert counts["trained"] == run.controller.totals.groups_trained == 160
    assert {name: counts[f"rejected({name})"] for name in rejected} == dict(rejected)
    assert sum(step.rejected for step in run.steps) <= rejected.total()
    pending = counts.get("drawn", 0) + counts.get("admitted", 0)
    assert pending == len(table) - 160 - rejected.total() <= 3 * 8


def test_what_was_trained_is_on_disk_at_every_checkpoint(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=1, steps=6)
    on_disk: list[int] = []

    def count(_: Any) -> None:
        with sqlite3.connect(tmp_path / "0.db") as other:
            on_disk.append(other.execute("SELECT count(*) FROM draws WHERE state='trained'").fetchone()[0])

    run.go(count)
    assert on_disk == [8, 16, 24, 32, 40, 48]


def test_each_draw_is_asked_under_an_instruction_of_its_capability(tmp_path: Path) -> None:
    pool = [Instruction(name, f"Say {name}.", train=name != "held-out") for name in ("a", "b", "held-out")]
    runs = []
    for seed in (0, 0, 1):
        run = run_on(tmp_path, max_staleness=0, steps=6)
        run.controller.instructions = InstructionPools({"easy": pool}, seed)
        runs.append(run.go())
    drawn = [
        dict(run.ledger._db.execute("SELECT draw_id, instruction FROM draws ORDER BY draw_id").fetchall())
        for run in runs
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for run, by_draw in zip(runs, drawn, strict=True):
        for draw_id, sampled in run.workers.sampled.items():
            prompt = sampled.draw.prompt
            assert by_draw[draw_id] == prompt.instruction
            assert run.sampler.prompts[sampled.draw.row].prompt_id == prompt.prompt_id
            if prompt.capability == "easy":
                assert prompt.messages == ({"role": "system", "content": f"Say {prompt.instruction}."},)
            else:
                assert prompt is run.sampler.prompts[sampled.draw.row]
        assert set(by_draw.values()) == {"a", "b", None}


def test_the_step_report_adds_up(tmp_path: Path) -> None:
    run = run_on(tmp_path, max_staleness=1, steps=6).go()
    for step, batch in zip(run.steps, run.batches, strict=True):
        solved = [outcome for sampled in batch for outcome in sampled.outcomes]
        assert step.solved == pytest.approx(np.mean(solved)) == pytest.approx(step.reward)
        assert step.train.tokens == sum(4 * sampled.length for sampled in batch)
        assert step.pause == 0.05
        assert step.scalars()["train/tokens"] == step.train.tokens
    assert run.controller.totals.tokens_trained == sum(step.train.tokens for step in run.steps)
