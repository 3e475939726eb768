"""The benchmarks' harness: arms in turn, what is kept and when it is used again, and the line of JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import harness
from tests.benchmarks.harness import Bench, Measurement, Options, spread
from tests.benchmarks.quality import gap


class Counted:
    """Two arms that note when they are measured."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def arm(self, name: str, fails_at: int = -1) -> Callable[[int], Measurement]:
        def work(repetition: int) -> Measurement:
            if repetition == fails_at:
                raise KeyboardInterrupt
            self.order.append(f"{name}{repetition}")
            return {"speed": 10.0 * repetition}

        return work

    def arms(self, **fails_at: int) -> dict[str, Callable[[int], Measurement]]:
        return {name: self.arm(name, fails_at.get(name, -1)) for name in ("a", "b")}


def bench(folder: Path, settings: dict | None = None, **options: object) -> Bench:
    return Bench("some", Options(folder=folder, **options), settings or {"size": 1})  # type: ignore[arg-type]


def test_arms_take_turns(tmp_path: Path) -> None:
    counted = Counted()
    found = bench(tmp_path).interleave(counted.arms(), 3)
    assert counted.order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert found == {name: [{"speed": 0.0}, {"speed": 10.0}, {"speed": 20.0}] for name in ("a", "b")}


def test_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    counted = Counted()
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path).interleave(counted.arms(b=1), 3)
    counted.order.clear()
    found = bench(tmp_path).interleave(counted.arms(), 3)
    assert counted.order == ["b1", "a1", "a2", "b2"]
    assert found["a"] == [{"speed": 0.0}, {"speed": 10.0}, {"speed": 20.0}]


def test_what_is_kept_elsewhere_is_not_measured_again(tmp_path: Path) -> None:
    bench(tmp_path / "first").interleave(Counted().arms(), 2)
    counted = Counted()
    found = bench(tmp_path / "second", kept=tmp_path / "first").interleave(counted.arms(), 3)
    assert counted.order == ["a2", "b2"]
    assert found["b"] == [{"speed": 0.0}, {"speed": 10.0}, {"speed": 20.0}]
    counted.order.clear()
    bench(tmp_path / "second", kept=tmp_path / "first", fresh=True).interleave(counted.arms(), 1)
    assert counted.order == ["a0", "b0"]


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    bench(tmp_path).interleave(Counted().arms(), 1)
    path = tmp_path / "some.jsonl"
    path.write_text(path.read_text()[:-20])
    for expected in (["b0"], []):
        counted = Counted()
        bench(tmp_path).interleave(counted.arms(), 1)
        assert counted.order == expected


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({"size": 1}, {}, []),
        ({"size": 2}, {}, ["a0", "b0"]),
        ({"size": 1}, {"fresh": True}, ["a0", "b0"]),
        ({"size": 1}, {"quick": True}, ["a0", "b0"]),
    ],
)
def test_what_is_kept_is_used_again_for_the_same_settings_only(
    settings: dict, options: dict, expected: list[str], tmp_path: Path
) -> None:
    bench(tmp_path).interleave(Counted().arms(), 1)
    counted = Counted()
    bench(tmp_path, settings, **options).interleave(counted.arms(), 1)
    assert counted.order == expected


def test_a_changed_source_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in harness.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "rollouts/a.py").write_text("a = 1\n")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "rollouts/a.py"))
    before = harness.source_hash()
    (tmp_path / "rollouts/notes.md").write_text("not a source")
    assert harness.source_hash() == before
    (tmp_path / "rollouts/a.py").write_text("a = 2\n")
    assert harness.source_hash() != before


def test_a_quick_run_leaves_nothing(tmp_path: Path) -> None:
    bench(tmp_path, quick=True).interleave(Counted().arms(), 1)
    assert not list(tmp_path.iterdir())


def test_at_most_so_many_unfinished_arms(tmp_path: Path) -> None:
    for expected in (["a0", "b0", "b1"], ["a1"], []):
        counted = Counted()
        bench(tmp_path, arms=3).interleave(counted.arms(), 2)
        assert counted.order == expected


def test_the_line(tmp_path: Path) -> None:
    this = bench(tmp_path)
    with this.timed("start"):
        pass
    measured = this.interleave(Counted().arms(), 2)
    line = json.loads(json.dumps(this.line(0.951234567, 0.95, "at least", speed=harness.spreads(measured, "speed"))))
    assert (line["bench"], line["value"], line["target"], line["holds"], line["quick"]) == (
        "some", 0.95123, 0.95, True, False,
    )  # fmt: skip
    assert line["speed"]["a"] == {"min": 0.0, "median": 5.0, "max": 10.0}
    assert line["ran"]["size"] == 1
    assert line["ran"]["cores"] >= 1
    assert "torch" in line["ran"]["versions"]
    assert (line["measured"], line["reused"]) == (4, 0)
    assert set(line["beside_seconds"]) == {"start"}


@pytest.mark.parametrize(
    ("value", "wanted", "holds"),
    [(1.0, "at least", True), (0.9, "at least", False), (0.9, "at most", True), (1.1, "at most", False),
     (None, "at most", False)],
)  # fmt: skip
def test_which_side_of_the_target_holds(value: float | None, wanted: str, holds: bool, tmp_path: Path) -> None:
    assert bench(tmp_path).line(value, 1.0, wanted)["holds"] is holds  # type: ignore[arg-type]


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.5, 2.0]) == {"min": 1.0, "median": 2.25, "max": 3.0}


def test_gap_is_in_pairs_of_seeds_with_a_one_sided_bound() -> None:
    found = gap({0: 0.70, 1: 0.72, 2: 0.9}, {0: 0.69, 1: 0.69})
    assert found["seeds"] == 2
    assert found["mean"] == pytest.approx(0.02)
    assert found["upper_95"] == pytest.approx(0.02 + 6.314 * 0.01)  # the standard error of 0.01 and 0.03 is 0.01
    assert gap({0: 0.7}, {0: 0.6})["upper_95"] is None
    assert gap({0: 0.7}, {}) == {"seeds": 0, "mean": None, "upper_95": None}
