"""Slots: how many may be drawn, and what makes a batch."""

import pytest

from posttrain.slots import Draw, Judged, Slots
from rollouts.types import Prompt


def draw(draw_id: int, capability: str = "a", version: int = 0) -> Draw:
    return Draw(draw_id, draw_id, Prompt(f"p{draw_id}", (), capability), version)


def judged(of: Draw, oldest_version: int | None = None) -> Judged:
    return Judged(of, (True, False), 0.5, of.version if oldest_version is None else oldest_version, 10, 0, None)


def filled(slots: Slots, *draws: Draw) -> Slots:
    for one in draws:
        slots.take(one)
    return slots


def ids(batch: list[Judged] | None) -> list[int] | None:
    return None if batch is None else [one.draw.draw_id for one in batch]


def test_each_capability_has_slots_of_its_own() -> None:
    slots = Slots(8, {"a": 3, "b": 1}, max_staleness=2)
    assert slots.quotas == {"a": 6, "b": 2}
    assert (slots.free("a"), slots.free("b")) == (18, 6)
    filled(slots, draw(0, "b"), draw(1, "b"))
    assert (slots.free("a"), slots.free("b")) == (18, 4)


def test_a_slot_is_held_until_it_is_released() -> None:
    slots = filled(Slots(2, {"a": 1}, max_staleness=0), draw(0), draw(1))
    assert slots.free("a") == 0
    for draw_id in (1, 0):
        slots.admit(judged(draw(draw_id)))
    batch = slots.batch(0)
    assert ids(batch) == [0, 1]
    assert slots.free("a") == 0  # training holds it
    slots.release(draw(0))
    assert slots.free("a") == 1
    assert slots.batch(0) is None
    slots.release(draw(0))  # twice does no harm
    assert slots.free("a") == 1


@pytest.mark.parametrize(("oversample", "free"), [(1.0, 4), (1.25, 5), (1.3, 6), (2.0, 8)])
def test_oversampling_rounds_up(oversample: float, free: int) -> None:
    slots = Slots(4, {"a": 1}, max_staleness=0)
    assert slots.free("a", oversample) == free
    filled(slots, *(draw(index) for index in range(4)))
    assert slots.free("a", oversample) == 0


def test_surplus_is_what_comes_last_in_draw_order() -> None:
    slots = filled(Slots(3, {"a": 2, "b": 1}, max_staleness=0), *(draw(index) for index in range(5)), draw(5, "b"))
    for draw_id in (4, 2, 3, 0):  # 1 is not ready
        slots.admit(judged(draw(draw_id)))
    assert ids(slots.surplus()) == [3, 4]


def test_fifo_waits_for_the_head_of_each_capability() -> None:
    slots = filled(Slots(3, {"a": 2, "b": 1}, 1), draw(0), draw(1), draw(2), draw(3), draw(4, "b"), draw(5, "b"))
    for draw_id in (1, 2, 3):
        slots.admit(judged(draw(draw_id)))
    slots.admit(judged(draw(4, "b")))
    assert slots.batch(0) is None
    slots.admit(judged(draw(0)))
    assert ids(slots.batch(0)) == [0, 1, 4]
    slots.release(draw(0))  # rejected after all: the next one moves up
    assert ids(slots.batch(0)) == [1, 2, 4]


def ready_slots(*versions: int, quota: int = 2, max_staleness: int = 2) -> Slots:
    slots = Slots(quota, {"a": 1}, max_staleness, order="ready")
    return filled(slots, *(draw(index, version=version) for index, version in enumerate(versions)))


def finish(slots: Slots, *draw_ids: int) -> None:
    for draw_id in draw_ids:
        slots.admit(judged(slots._live["a"][draw_id]))


def test_ready_takes_what_finished_first() -> None:
    slots = ready_slots(0, 0, 0, 0, 0, 0)
    finish(slots, 5, 3)
    assert ids(slots.batch(0)) == [3, 5]


def test_ready_waits_for_a_group_that_would_pass_the_bound() -> None:
    slots = ready_slots(0, 1, 2, 2, 2, 2)
    finish(slots, 4, 3, 1)
    assert slots.batch(2) is None  # 0 is due now
    finish(slots, 0)
    assert ids(slots.batch(2)) == [0, 4]


def test_ready_looks_ahead_so_that_no_later_batch_is_overfull() -> None:
    slots = ready_slots(1, 1, 1, 2, 2, 2)  # at version 2 three are due within the next batch, which holds two
    finish(slots, 5, 4)
    assert slots.batch(2) is None
    finish(slots, 2)
    assert ids(slots.batch(2)) == [2, 5]


def test_ready_with_no_staleness_is_any_full_batch() -> None:
    slots = ready_slots(0, 0, max_staleness=0)
    finish(slots, 1)
    assert slots.batch(0) is None
    finish(slots, 0)
    assert ids(slots.batch(0)) == [0, 1]


def test_stale_counts_from_the_oldest_token() -> None:
    slots = filled(Slots(4, {"a": 1}, 1), draw(0), draw(1), draw(2))
    slots.admit(judged(draw(0), oldest_version=0))
    slots.admit(judged(draw(1), oldest_version=1))
    assert ids(slots.stale(1)) == []
    assert ids(slots.stale(2)) == [0]
    assert ids(slots.stale(3)) == [0, 1]


def test_lending_probing_and_restoring() -> None:
    slots = Slots(6, {"a": 1, "b": 1, "c": 1}, max_staleness=1)
    slots.lend("b")
    assert slots.quotas == {"a": 3, "b": 0, "c": 3}
    assert [slots.free(name) for name in "abc"] == [6, 0, 6]
    slots.probe("b")
    assert slots.free("b") == 1
    slots.take(draw(0, "b"))
    assert slots.free("b") == 0
    slots.lend("b")  # the probe was rejected
    slots.release(draw(0, "b"))
    assert slots.free("b") == 0
    slots.restore("b")
    assert slots.quotas == {"a": 2, "b": 2, "c": 2}
    assert slots.free("b") == 4
    assert (slots.lent, slots.probing) == (set(), set())
    for name in "abc":
        slots.lend(name)
    assert set(slots.quotas.values()) == {0}


def test_waiting_for_is_one_line_with_every_capability() -> None:
    slots = filled(Slots(3, {"a": 2, "b": 1}, 1), draw(0), draw(1), draw(2, "b"))
    slots.admit(judged(draw(1)))
    assert slots.waiting_for() == "a: 2 drawn, 1 ready of 2, b: 1 drawn, 0 ready of 1"
