"""The snapshots of a run in its file, over attempts, and the page that is drawn from them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from curricula.snapshot import CurriculumSnapshot
from posttrain.curriculum_log import CurriculumLog, read_snapshots
from posttrain.curriculum_plots import plot_curriculum, windows
from posttrain.svg import Figure, Panel, shade, ticks
from tests.posttrain.simulation import Run, SimulatedWorkers, make_prompts, make_run, mixing

SVG = "{http://www.w3.org/2000/svg}"


def simulated(tmp_path: Path, version: int = 0, steps: int = 6) -> tuple[Run, CurriculumLog]:
    """A run whose capability `math` rejects half of its groups, and its log, from a version on."""
    workers = SimulatedWorkers(mixing(math=0.5, code=1.0))
    workers.trainer_version = workers.version = version
    prompts = make_prompts(math=40, code=40)
    run = make_run(tmp_path / f"{version}.db", prompts, workers, steps=steps, quotas={"math": 3.0, "code": 1.0})
    run.controller.version = run.controller.synced = version
    return run, CurriculumLog(tmp_path / "c.jsonl", version, run.sampler, run.controller.slots.quotas)


def test_a_line_for_each_step_counts_what_that_step_did(tmp_path: Path) -> None:
    run, log = simulated(tmp_path)
    run.go(lambda step: log.write(step.version, run.controller.totals))
    rows = read_snapshots(tmp_path / "c.jsonl")
    assert [row.version for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.asked for row in rows] == [{"math": 6, "code": 2}] * 6
    for row, batch in zip(rows, run.batches, strict=True):
        trained = [sampled.draw.capability for sampled in batch]
        assert row.trained == {name: trained.count(name) for name in set(trained)} == row.asked
        assert 0 <= row.mixed <= row.drawn
    totals = run.controller.totals
    assert sum(row.drawn for row in rows) == totals.groups_judged >= 48
    solved = sum(row.drawn * row.solve_rate for row in rows if row.solve_rate is not None)
    assert solved == pytest.approx(sum(run.ledger.pass_rates()))
    mixed = sum(0 < rate < 1 for rate in run.ledger.pass_rates())
    assert sum(row.mixed for row in rows) == mixed < totals.groups_judged
    seen = {sampled.draw.prompt.prompt_id for sampled in run.workers.sampled.values()}
    assert 0 < 80 - rows[-1].buckets["unseen"] == sum(rows[-1].histogram) <= len(seen)


def test_resuming_drops_what_was_written_after_the_checkpoint(tmp_path: Path) -> None:
    run, log = simulated(tmp_path)
    run.go(lambda step: log.write(step.version, run.controller.totals))
    before = read_snapshots(tmp_path / "c.jsonl")
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write('{"version": 7, "histo')  # killed while it wrote
    resumed, log = simulated(tmp_path, version=4, steps=8)
    assert read_snapshots(tmp_path / "c.jsonl") == before[:4]
    resumed.go(lambda step: log.write(step.version, resumed.controller.totals))
    rows = read_snapshots(tmp_path / "c.jsonl")
    assert [row.version for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[:4] == before[:4]
    assert rows[4].trained == {"math": 6, "code": 2}  # since the resume, not since the run began
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_a_run_that_starts_anew_begins_an_empty_file(tmp_path: Path) -> None:
    assert read_snapshots(tmp_path / "c.jsonl") == []
    (tmp_path / "c.jsonl").write_text('{"version": 1}\n')  # of an attempt that ended before its first checkpoint
    simulated(tmp_path)
    assert (tmp_path / "c.jsonl").read_text() == ""


# ------------------------------------------------------------------------------------------------------------ plots


def snapshot(version: int, **changes: object) -> CurriculumSnapshot:
    made = CurriculumSnapshot(
        version=version,
        histogram=[4, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        buckets={"unseen": 10, "unsolved": 1, "hard": 1, "medium": 2, "easy": 0, "solved": 1},
        moved={"hard>medium": 2, "easy>medium": 1, "unseen>hard": 5},
        band=(0.2, 0.5),
        asked={"math": 3, "code": 1},
        trained={"math": 2, "code": 2},
        drawn=10,
        mixed=7,
        solve_rate=0.4,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def draw(tmp_path: Path, rows: Sequence[CurriculumSnapshot], run: str = "demo") -> ET.Element:
    plot_curriculum(rows, tmp_path / "c.svg", run)
    assert [path.name for path in tmp_path.iterdir()] == ["c.svg"]
    return ET.parse(tmp_path / "c.svg").getroot()


def panels(root: ET.Element) -> list[ET.Element]:
    return root.findall(f"{SVG}g")


def texts(element: ET.Element) -> list[str]:
    return [found.text or "" for found in element.iter(f"{SVG}text")]


def heights(panel: ET.Element, colour: str) -> list[float]:
    """Of the areas of a colour, as shares of the panel's height: lowest and highest edge."""
    found = [each for each in panel.iter(f"{SVG}polygon") if each.get("fill") == colour]
    (area,) = found
    ys = [float(point.split(",")[1]) for point in (area.get("points") or "").split()]
    (axis,) = [line for line in panel.findall(f"{SVG}polyline") if len((line.get("points") or "").split()) == 3]
    bottom = float((axis.get("points") or "").split()[1].split(",")[1])
    return [(bottom - max(ys)) / Panel.HEIGHT, (bottom - min(ys)) / Panel.HEIGHT]


def test_the_page_has_titles_axes_and_legends(tmp_path: Path) -> None:
    root = draw(tmp_path, [snapshot(version) for version in range(1, 21)], run="a <b> & c")
    assert "Curriculum of a <b> & c" in texts(root)
    assert "after step 20: 5 of 15 prompts seen" in texts(root)
    assert len(panels(root)) == 6
    assert all("train step" in texts(panel) for panel in panels(root))
    rates, band, buckets, moves, quotas, mixed = panels(root)
    assert "80 % of the prompts seen" in texts(rates)
    assert {"band aimed at", "pass rate"} <= set(texts(band))
    assert {"unsolved", "hard", "medium", "easy", "solved", "prompts"} <= set(texts(buckets))
    assert "to medium" in texts(moves)
    assert {"math", "code", "groups of a batch"} <= set(texts(quotas))
    assert "share of the groups drawn" in texts(mixed)


def test_what_is_drawn_is_what_the_snapshots_say(tmp_path: Path) -> None:
    root = draw(tmp_path, [snapshot(version) for version in range(1, 21)])
    rates, band, buckets, moves, quotas, mixed = panels(root)
    cells = [found.text for found in rates.iter(f"{SVG}title")]
    assert cells[:10] == ["step 1: 80% of the prompts seen", *["step 1: 0% of the prompts seen"] * 8,
                          "step 1: 20% of the prompts seen"]  # fmt: skip
    assert heights(band, "#f3cfb3") == pytest.approx([0.2, 0.5], abs=1e-3)
    assert heights(buckets, "#21918c") == pytest.approx([2 / 5, 4 / 5], abs=1e-3)  # medium, on unsolved and hard
    assert heights(quotas, "#0072b2") == pytest.approx([0, 0.5], abs=1e-3)  # math: 2 of 4 trained
    (dashed, _) = [line for line in quotas.iter(f"{SVG}polyline") if line.get("stroke-dasharray")]
    y = {float(point.split(",")[1]) for point in (dashed.get("points") or "").split()}
    axis = max(float(point.split(",")[1]) for line in quotas.findall(f"{SVG}polyline")[-1:]
               for point in (line.get("points") or "").split())  # fmt: skip
    assert (axis - y.pop()) / Panel.HEIGHT == pytest.approx(0.75, abs=1e-3)  # 3 of 4 asked
    assert not y
    # a hint on each bar; first sightings are no moves
    assert {found.text for found in moves.iter(f"{SVG}title")} == {"2 to medium", "1 to medium"}
    (line,) = [line for line in mixed.iter(f"{SVG}polyline") if line.get("stroke") == "#0072b2"]
    assert len({point.split(",")[1] for point in (line.get("points") or "").split()}) == 1


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_any_length_of_a_run(tmp_path: Path, count: int) -> None:
    root = draw(tmp_path, [snapshot(version) for version in range(1, count + 1)])
    numbers = re.findall(r"nan|inf", ET.tostring(root, encoding="unicode"))
    assert numbers == []
    assert len(panels(root)) == 6
    assert len(list(panels(root)[0].iter(f"{SVG}rect"))) <= 11 + 10 * min(count, 90)


def test_a_run_without_band_moves_or_draws(tmp_path: Path) -> None:
    rows = [snapshot(1, band=None, moved={}, drawn=0, mixed=0, solve_rate=None, histogram=[0] * 10)]
    _, band, _, moves, *_ = panels(draw(tmp_path, rows))
    assert "band aimed at" not in texts(band)
    assert "none did" in texts(moves)


def test_many_capabilities_share_the_last_colour(tmp_path: Path) -> None:
    asked = {f"capability-with-a-long-name-{index}": 2 for index in range(12)}
    quotas = panels(draw(tmp_path, [snapshot(1, asked=asked, trained=asked)]))[4]
    assert texts(quotas)[-8:] == [*["capability-wi…"] * 7, "others"]
    assert heights(quotas, "#999999") == pytest.approx([14 / 24, 1], abs=1e-3)


def test_no_snapshots_draw_nothing(tmp_path: Path) -> None:
    plot_curriculum([], tmp_path / "c.svg", "demo")
    assert list(tmp_path.iterdir()) == []


def test_windows_are_of_nearly_the_same_length_and_cover_all() -> None:
    rows = [snapshot(version) for version in range(1, 101)]
    parts = windows(rows, 30)
    assert [row for part in parts for row in part] == rows
    assert (len(parts), {len(part) for part in parts}) == (30, {3, 4})
    assert windows(rows[:3], 30) == [[row] for row in rows[:3]]


# -------------------------------------------------------------------------------------------------------------- SVG


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 225, [0, 50, 100, 150, 200]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 60_000, [0, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000]),
        (-7.5, 9.6, [-5, 0, 5]),
        (3, 4, [3, 3.2, 3.4, 3.6, 3.8, 4]),
        (0, 0.013, [0, 0.005, 0.01]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_shades_go_from_light_to_dark() -> None:
    assert (shade(0), shade(1)) == ("#f1f6fb", "#08306b")
    blues = [int(shade(step / 10)[1:3], 16) for step in range(11)]
    assert blues == sorted(blues, reverse=True)


def test_a_box_lies_where_its_data_is() -> None:
    panel = Figure("t", "s", 1).panel("p", "x", "y", (0, 10), (0, 4))
    panel.box((5, 10), (1, 3), "#123456", "a hint")
    (box,) = [found for found in panel._inside if found.get("fill") == "#123456"]
    assert float(box.get("width") or 0) == pytest.approx(Panel.WIDTH / 2)
    assert float(box.get("height") or 0) == pytest.approx(Panel.HEIGHT / 2)
    assert float(box.get("x") or 0) - panel._left == pytest.approx(Panel.WIDTH / 2)
    assert float(box.get("y") or 0) - panel._top == pytest.approx(Panel.HEIGHT / 4)
