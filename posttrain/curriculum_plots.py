"""`curriculum.png`: what the curriculum did over a run, from its snapshots.

Six panels: the pass rates of the prompts seen, the hardness band and what was drawn, the prompts by bucket, what moved
between buckets, the quotas asked and trained, the share of groups that could teach.

Colours can be told apart with any colour vision: viridis where they are an order, Okabe and Ito's
(https://jfly.uni-koeln.de/color/) where they are not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curricula.buckets import BUCKETS
from curricula.snapshot import BINS, UNSEEN, CurriculumSnapshot
from posttrain.curriculum_log import NAME, read_snapshots
from posttrain.progress import say
from rollouts.dotted import describe

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDERED = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Of the buckets from unsolved to solved: five steps of viridis."""
DISTINCT = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
"""Of things without an order."""
BAND, INK = "#f3cfb3", "#222222"
COLUMNS = 90
"""Most points along the steps of a run."""
WINDOWS = 30
"""Most points of what is noisy in a single step."""
LONGEST = 20
"""Most letters of a capability's name in a legend."""
OTHERS = "others"
SIZE, DPI = (13, 12), 120
"""Of the page, in inches, and its resolution."""

Window = Sequence[CurriculumSnapshot]


def draw_curriculum(folder: Path, run: str) -> None:
    """Draws `curriculum.png` from `curriculum.jsonl`; where that fails, one line says so, and the run goes on.

    Args:
        folder: of the RL stage, which has the one file and gets the other.
        run: the run's name.
    """
    path = folder / "curriculum.png"
    try:
        plot_curriculum(read_snapshots(folder / NAME), path, run)
    except Exception as error:  # noqa: BLE001  # a run of days must not end for want of a picture
        say(f"{path} was not drawn: {describe(error)}")


def plot_curriculum(snapshots: Sequence[CurriculumSnapshot], path: Path, run: str) -> None:
    """Draws the snapshots of a run, oldest first; none draw nothing.

    Args:
        snapshots: of train steps.
        path: of the PNG file, which is written atomically.
        run: the run's name.
    """
    if not snapshots:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with _settings_within(path.parent):
        figure = curriculum_figure(snapshots, run)
        page = {"Title": _title(run), "Description": _subtitle(snapshots)}
        figure.savefig(temporary, format="png", dpi=DPI, metadata=page)
    temporary.replace(path)


@contextmanager
def _settings_within(folder: Path) -> Iterator[None]:
    """Lets matplotlib write its list of fonts, when first imported, to this folder for a moment and not to the home."""
    if "matplotlib.font_manager" in sys.modules or "MPLCONFIGDIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix=".matplotlib-", dir=folder) as directory:
        os.environ["MPLCONFIGDIR"] = directory
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def curriculum_figure(snapshots: Sequence[CurriculumSnapshot], run: str) -> Figure:
    """The page of the snapshots of a run, oldest first and at least one; belongs to no window and no global state."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=SIZE, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    figure.suptitle(f"{_title(run)}\n{_subtitle(snapshots)}", parse_math=False)
    panels = (_pass_rates, _band, _buckets, _moves, _quotas, _mixed)
    for axes, draw in zip(figure.subplots(3, 2).flat, panels, strict=True):
        axes.set_xlabel("train step")
        axes.set_xlim(_steps(snapshots))
        axes.locator_params(axis="x", integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        draw(axes, snapshots)
    return figure


def _title(run: str) -> str:
    return f"Curriculum of {run}"


def _subtitle(snapshots: Sequence[CurriculumSnapshot]) -> str:
    last = snapshots[-1]
    prompts = sum(last.buckets.values())
    return f"after step {last.version:,}: {prompts - last.buckets[UNSEEN]:,} of {prompts:,} prompts seen"


def windows(snapshots: Sequence[CurriculumSnapshot], most: int) -> list[Window]:
    """At most so many parts of nearly the same length, in order."""
    count = min(most, len(snapshots))
    edges = [round(index * len(snapshots) / count) for index in range(count + 1)]
    return [snapshots[first:end] for first, end in pairwise(edges)]


def _steps(snapshots: Sequence[CurriculumSnapshot]) -> tuple[float, float]:
    return snapshots[0].version - 1, snapshots[-1].version


def _span(window: Window) -> tuple[float, float]:
    return window[0].version - 1, window[-1].version


def _middle(window: Window) -> float:
    return sum(_span(window)) / 2


def _legend(axes: Axes, entries: Iterable[tuple[Artist, str]], title: str | None = None) -> None:
    """Beside the panel, where it covers no data; the last entry on top, as things are stacked."""
    handles, labels = zip(*entries, strict=True)
    beside: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.0, 1.0),
        "frameon": False,
        "alignment": "left",
        "handlelength": 1.4,
    }
    legend = axes.legend(handles, labels, title=title, reverse=True, **beside)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a capability may have a `$` in its name


def _pass_rates(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    from matplotlib.ticker import PercentFormatter

    parts = windows(snapshots, COLUMNS)
    shares = [[count / max(1, sum(part[-1].histogram)) for count in part[-1].histogram] for part in parts]
    highest = max(max(column) for column in shares) or 1.0
    edges = [_span(parts[0])[0], *(_span(part)[1] for part in parts)]
    rates = [index / BINS for index in range(BINS + 1)]
    mesh = axes.pcolormesh(edges, rates, list(zip(*shares, strict=True)), cmap="Blues", vmin=0, vmax=highest)
    beside = axes.inset_axes((1.03, 0.0, 0.03, 1.0))
    axes.figure.colorbar(mesh, beside, label="share of the prompts seen", format=PercentFormatter(1.0, decimals=0))
    axes.set(title="Pass rates of the prompts seen", ylabel="pass rate (posterior mean)")


def _band(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    entries: list[tuple[Artist, str]] = []
    banded = [snapshot for snapshot in snapshots if snapshot.band is not None]
    if banded:
        low, high = (
            _across(banded, [(each.version, each.band[end]) for each in banded if each.band]) for end in (0, 1)
        )
        entries.append((axes.fill_between(low[0], low[1], high[1], color=BAND, linewidth=0), "band aimed at"))
    points = []
    for part in windows(snapshots, WINDOWS):
        drawn = sum(each.drawn for each in part)
        if drawn:
            solved = sum(each.drawn * each.solve_rate for each in part if each.solve_rate is not None)
            points.append((_middle(part), solved / drawn))
    (line,) = axes.plot(*_across(snapshots, points), color=DISTINCT[0], linewidth=2)
    axes.set(title="Hardness band", ylabel="pass rate (share of rollouts)", ylim=(0, 1))
    axes.grid(axis="y", alpha=0.4)
    _legend(axes, [*entries, (line, "groups drawn")])


def _buckets(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    parts = [part[-1] for part in windows(snapshots, COLUMNS)]
    most = max(sum(each.buckets[name] for name in BUCKETS) for each in parts)
    xs, _ = _across(snapshots, [(each.version, 0.0) for each in parts])
    counts = [_across(snapshots, [(each.version, each.buckets[name]) for each in parts])[1] for name in BUCKETS]
    areas = axes.stackplot(xs, *counts, colors=ORDERED, linewidth=0)
    axes.set(title="Prompts seen, by bucket", ylabel="prompts", ylim=(0, 1.05 * max(most, 1)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="y", integer=True)
    _legend(axes, zip(areas, BUCKETS, strict=True), "bucket")


def _moves(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    """The colour is that of the bucket moved into."""
    parts = windows(snapshots, WINDOWS)
    found = [_moved(part) for part in parts]
    up, down = (max(sum(into.values()) for into in directions) for directions in zip(*found, strict=True))
    lefts, rights = zip(*(_span(part) for part in parts), strict=True)
    widths = [0.8 * (right - left) for left, right in zip(lefts, rights, strict=True)]
    starts = [left + width / 8 for left, width in zip(lefts, widths, strict=True)]
    bars: dict[str, Artist] = {}
    for sign, directions in zip((1, -1), zip(*found, strict=True), strict=True):
        base = [0.0] * len(parts)
        for name, colour in zip(BUCKETS, ORDERED, strict=True):
            heights = [sign * into[name] for into in directions]
            (bars[name], *_) = axes.bar(starts, heights, widths, base, align="edge", color=colour)
            base = [low + height for low, height in zip(base, heights, strict=True)]
    if not up and not down:
        axes.text(0.5, 0.75, "none did", transform=axes.transAxes, ha="center", color="#777777")
    highest = 1.05 * max(up, down) or 1.0
    axes.set(
        title="Prompts that changed their bucket",
        ylabel="prompts per step\n(below 0: to a harder bucket)",
        ylim=(-max(1.05 * down, 0.2 * highest), max(1.05 * up, 0.2 * highest)),
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,g}")
    axes.grid(axis="y", alpha=0.4)
    axes.axhline(0, color=INK, linewidth=1)
    _legend(axes, [(bars[name], name) for name in BUCKETS], "moved to")


def _moved(part: Window) -> tuple[dict[str, float], dict[str, float]]:
    """Prompts per step that moved to an easier and to a harder bucket, by that bucket."""
    easier, harder = (dict.fromkeys(BUCKETS, 0.0) for _ in range(2))
    for each in part:
        for move, count in each.moved.items():
            old, new = move.split(">")
            if UNSEEN not in (old, new):
                (easier if BUCKETS.index(new) > BUCKETS.index(old) else harder)[new] += count / len(part)
    return easier, harder


def _quotas(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    """Trained groups stacked by capability, and where the quotas would have them end."""
    asked = snapshots[-1].asked
    names = list(asked)
    if len(names) > len(DISTINCT):
        names = [*sorted(asked, key=lambda name: -asked[name])[: len(DISTINCT) - 1], OTHERS]

    def shares(groups: dict[str, int]) -> list[float]:
        named = [float(groups.get(name, 0)) for name in names]
        if OTHERS in names and OTHERS not in asked:
            named[-1] = sum(groups.values()) - sum(named)
        return named

    parts = windows(snapshots, WINDOWS)
    edges = [place for part in parts for place in _span(part)]  # flat over each window
    trained = [_mean([shares(each.trained) for each in part]) for part in parts for _ in range(2)]
    quotas = [_mean([shares(each.asked) for each in part]) for part in parts for _ in range(2)]
    most = max(sum(column) for column in (*trained, *quotas))
    short = [name if len(name) <= LONGEST else f"{name[:9]}…{name[-10:]}" for name in names]
    areas = axes.stackplot(edges, *zip(*trained, strict=True), colors=DISTINCT, linewidth=0)
    levels = zip(*(accumulate(column) for column in quotas), strict=True)
    lines = [axes.plot(edges, level, color=INK, linewidth=1.5, linestyle="--")[0] for level in levels]
    axes.set(title="Groups trained, by capability", ylabel="groups of a batch", ylim=(0, 1.05 * max(most, 1)))
    axes.locator_params(axis="y", integer=True)
    _legend(axes, [*zip(areas, short, strict=True), (lines[0], "quotas asked")], "capability")


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _mixed(axes: Axes, snapshots: Sequence[CurriculumSnapshot]) -> None:
    points = []
    for part in windows(snapshots, WINDOWS):
        drawn = sum(each.drawn for each in part)
        if drawn:
            points.append((_middle(part), sum(each.mixed for each in part) / drawn))
    axes.plot(*_across(snapshots, points), color=DISTINCT[0], linewidth=2)
    axes.set(title="Groups drawn whose outcomes are mixed", ylabel="share of the groups drawn", ylim=(0, 1))
    axes.grid(axis="y", alpha=0.4)


def _across(
    snapshots: Sequence[CurriculumSnapshot], points: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """Points as columns, level to both edges of the panel, so that a single one is a line too."""
    if not points:
        return [], []
    first, last = _steps(snapshots)
    return [first, *(x for x, _ in points), last], [points[0][1], *(y for _, y in points), points[-1][1]]
