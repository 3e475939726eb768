"""The snapshots of a run in its file, over attempts, and the page that is drawn from them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from curricula.snapshot import CurriculumSnapshot
from posttrain.curriculum_log import CurriculumLog, read_snapshots
from posttrain.curriculum_plots import curriculum_figure, draw_curriculum, plot_curriculum, windows
from tests.posttrain.simulation import Run, SimulatedWorkers, make_prompts, make_run, mixing


def simulated(tmp_path: Path, version: int = 0, steps: int = 6) -> tuple[Run, CurriculumLog]:
    """A run whose capability `math` rejects half of its groups, and its log, from a version on."""
    workers = SimulatedWorkers(mixing(math=0.5, code=1.0))
    workers.trainer_version = workers.version = version
    prompts = make_prompts(math=40, code=40)
    run = make_run(tmp_path / f"{version}.db", prompts, workers, steps=steps, quotas={"math": 3.0, "code": 1.0})
    run.controller.version = run.controller.synced = version
    return run, CurriculumLog(tmp_path / "c.jsonl", version, run.sampler, run.controller.slots.asked)


def test_a_line_for_each_step_counts_what_that_step_did(tmp_path: Path) -> None:
    run, log = simulated(tmp_path)
    run.go(lambda step: log.write(step.version, run.controller.totals))
    rows = read_snapshots(tmp_path / "c.jsonl")
    assert [row.version for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.asked for row in rows] == [{"math": 6, "code": 2}] * 6
    for row, batch in zip(rows, run.batches, strict=True):
        trained = [sampled.draw.domain for sampled in batch]
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


def test_shares_are_those_asked_for_though_a_capability_lends_its_own_at_the_resume(tmp_path: Path) -> None:
    run, _ = simulated(tmp_path)
    run.controller.restore({"without_signal": {"math": 40}, "lent_since": {"math": 0}, "probing": []}, 0, [])
    assert run.controller.slots.quotas == {"math": 0, "code": 8}
    assert run.controller.slots.asked == {"math": 6, "code": 2}
    log = CurriculumLog(tmp_path / "c.jsonl", 0, run.sampler, run.controller.slots.asked)
    log.write(1, run.controller.totals)
    assert [row.asked for row in read_snapshots(tmp_path / "c.jsonl")] == [{"math": 6, "code": 2}]


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


def panels(rows: Sequence[CurriculumSnapshot], run: str = "demo") -> list[Axes]:
    return curriculum_figure(rows, run).axes


def entries(panel: Axes) -> list[str]:
    """Of the legend, from its top."""
    legend = panel.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def areas(panel: Axes) -> dict[str, list[tuple[float, float]]]:
    """Lowest and highest edge of each area, by its colour."""
    found: dict[str, list[tuple[float, float]]] = {}
    for area in panel.collections:
        ys = area.get_paths()[0].vertices[:, 1]
        found.setdefault(to_hex(area.get_facecolor()[0]), []).append((ys.min(), ys.max()))
    return found


def test_the_page_has_titles_axes_and_legends() -> None:
    figure = curriculum_figure([snapshot(version) for version in range(1, 21)], "a <b> & $c$")
    assert figure.get_suptitle() == "Curriculum of a <b> & $c$\nafter step 20: 5 of 15 prompts seen"
    assert [panel.get_title() for panel in figure.axes] == [
        "Pass rates of the prompts seen", "Hardness band", "Prompts seen, by bucket",
        "Prompts that changed their bucket", "Groups trained, by capability", "Groups drawn whose outcomes are mixed",
    ]  # fmt: skip
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "pass rate (posterior mean)", "pass rate (share of rollouts)", "prompts",
        "prompts per step\n(below 0: to a harder bucket)", "groups of a batch", "share of the groups drawn",
    ]  # fmt: skip
    assert {panel.get_xlabel() for panel in figure.axes} == {"train step"}
    assert {panel.get_xlim() for panel in figure.axes} == {(0, 20)}
    rates, band, buckets, moves, quotas, mixed = figure.axes
    (scale,) = rates.child_axes
    assert scale.get_ylabel() == "share of the prompts seen"
    assert entries(band) == ["groups drawn", "band aimed at"]
    assert entries(buckets) == entries(moves) == ["solved", "easy", "medium", "hard", "unsolved"]
    assert entries(quotas) == ["quotas asked", "code", "math"]
    assert entries(mixed) == []


@pytest.mark.parametrize("capabilities", [2, 12])
def test_legends_lie_beside_their_panels_and_on_the_page(capabilities: int) -> None:
    asked = {f"{index}-capability-with-a-long-name-{index}": 2 for index in range(capabilities)}
    figure = curriculum_figure([snapshot(version, asked=asked, trained=asked) for version in range(1, 21)], "demo")
    figure.draw_without_rendering()
    legends = [(panel, panel.get_legend().get_window_extent()) for panel in figure.axes if panel.get_legend()]
    assert len(legends) == 4
    for panel, box in legends:
        assert box.x0 >= panel.bbox.x1
        assert not any(box.overlaps(other.bbox) for other in figure.axes)
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= figure.bbox.y0


def test_what_is_drawn_is_what_the_snapshots_say() -> None:
    rates, band, buckets, moves, quotas, mixed = panels([snapshot(version) for version in range(1, 21)])
    (mesh,) = rates.collections
    assert mesh.get_array()[:, 0].tolist() == [0.8, *[0] * 8, 0.2]
    assert areas(band)["#f3cfb3"] == [(0.2, 0.5)]
    assert set(band.lines[0].get_ydata()) == {0.4}
    assert areas(buckets)["#21918c"] == [(2, 4)]  # medium, on unsolved and hard
    assert areas(quotas)["#0072b2"] == [(0, 2)]  # math is trained on 2 groups
    assert [(set(line.get_ydata()), line.get_linestyle()) for line in quotas.lines] == [({3}, "--"), ({4}, "--")]
    bars = {(bar.get_y(), bar.get_height(), to_hex(bar.get_facecolor())) for bar in moves.patches if bar.get_height()}
    assert bars == {(0, 2, "#21918c"), (0, -1, "#21918c")}  # to medium, from both sides; first sightings are no moves
    assert mixed.lines[0].get_ydata() == pytest.approx([0.7] * 22)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_any_length_of_a_run(count: int) -> None:
    rates, band, _, _, quotas, mixed = panels([snapshot(version) for version in range(1, count + 1)])
    assert rates.collections[0].get_array().shape == (10, min(count, 90))
    for line in (*band.lines, *quotas.lines, *mixed.lines):
        assert np.isfinite(line.get_xydata()).all()
        assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0, count)
        assert len(line.get_xdata()) <= 60
    assert {len(line.get_xdata()) for line in mixed.lines} == {min(count, 30) + 2}


def test_a_run_without_band_moves_or_draws() -> None:
    rows = [snapshot(1, band=None, moved={}, drawn=0, mixed=0, solve_rate=None, histogram=[0] * 10)]
    _, band, _, moves, *_ = panels(rows)
    assert entries(band) == ["groups drawn"]
    assert [text.get_text() for text in moves.texts] == ["none did"]


def test_many_capabilities_share_the_last_colour() -> None:
    asked = {f"capability-with-a-long-name-{index}": 2 for index in range(12)}
    quotas = panels([snapshot(1, asked=asked, trained=asked)])[4]
    assert entries(quotas) == ["quotas asked", "others", *(f"capabilit…ong-name-{index}" for index in range(6, -1, -1))]
    assert areas(quotas)["#999999"] == [(14, 24)]


def test_names_of_capabilities_stand_as_they_are() -> None:
    asked = {"$x$ _y": 1, "_hidden": 1}
    quotas = panels([snapshot(1, asked=asked, trained=asked)])[4]
    assert entries(quotas)[1:] == ["_hidden", "$x$ _y"]
    assert not any(text.get_parse_math() for text in quotas.get_legend().get_texts())


@pytest.mark.parametrize("count", [1, 20])
def test_the_page_is_written_whole_and_nothing_beside_it(tmp_path: Path, count: int) -> None:
    plot_curriculum([snapshot(version) for version in range(1, count + 1)], tmp_path / "c.png", "a <b> & $c$")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]
    with Image.open(tmp_path / "c.png") as page:
        assert (page.format, page.size) == ("PNG", (1560, 1440))
        assert page.info["Title"] == "Curriculum of a <b> & $c$"
        assert page.info["Description"] == f"after step {count}: 5 of 15 prompts seen"
        colours = {colour for _, colour in page.convert("RGB").getcolors(1 << 24)}
    assert {(0x21, 0x91, 0x8C), (0x00, 0x72, 0xB2), (0xF3, 0xCF, 0xB3)} <= colours


def test_a_first_drawing_leaves_the_home_directory_alone(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "rl"
    home.mkdir()
    folder.mkdir()
    (folder / "curriculum.jsonl").write_text(json.dumps(asdict(snapshot(1))) + "\n")
    code = "import sys; from pathlib import Path; from posttrain.curriculum_plots import draw_curriculum\n"
    code += "assert 'matplotlib' not in sys.modules; draw_curriculum(Path(sys.argv[1]), 'demo')"
    kept = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR" and not name.startswith("XDG_")}
    environment = {**kept, "HOME": str(home)}
    words = [sys.executable, "-c", code, folder]
    ended = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
    assert list(home.iterdir()) == []
    assert {path.name for path in folder.iterdir()} == {"curriculum.jsonl", "curriculum.png"}


def test_what_cannot_be_drawn_is_a_line_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curriculum.jsonl").write_text("no JSON\n")
    draw_curriculum(tmp_path, "demo")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'curriculum.png'} was not drawn: JSONDecodeError: ")
    (tmp_path / "curriculum.jsonl").write_text(json.dumps(asdict(snapshot(1))) + "\n")
    (tmp_path / "curriculum.png").mkdir()
    draw_curriculum(tmp_path, "demo")
    (line,) = capsys.readouterr().err.splitlines()
    assert "was not drawn: IsADirectoryError: " in line


def test_no_snapshots_draw_nothing(tmp_path: Path) -> None:
    draw_curriculum(tmp_path, "demo")
    assert list(tmp_path.iterdir()) == []


def test_windows_are_of_nearly_the_same_length_and_cover_all() -> None:
    rows = [snapshot(version) for version in range(1, 101)]
    parts = windows(rows, 30)
    assert [row for part in parts for row in part] == rows
    assert (len(parts), {len(part) for part in parts}) == (30, {3, 4})
    assert windows(rows[:3], 30) == [[row] for row in rows[:3]]
