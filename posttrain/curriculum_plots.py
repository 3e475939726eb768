"""`curriculum.svg`: what the curriculum did over a run, from its snapshots.

Six panels: the pass rates of the prompts seen, the hardness band and what was drawn, the prompts by bucket, what moved
between buckets, the quotas asked and trained, the share of groups that could teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from curricula.buckets import BUCKETS
from curricula.snapshot import BINS, UNSEEN, CurriculumSnapshot
from posttrain.svg import BAND, DISTINCT, INK, ORDERED, Figure, shade

COLUMNS = 90
"""Most points along the steps of a run."""
WINDOWS = 30
"""Most points of what is noisy in a single step."""
OTHERS = "others"

Window = Sequence[CurriculumSnapshot]


def plot_curriculum(snapshots: Sequence[CurriculumSnapshot], path: Path, run: str) -> None:
    """Draws the snapshots of a run, oldest first; none draw nothing.

    Args:
        snapshots: of train steps.
        path: of the SVG file, which is written atomically.
        run: the run's name.
    """
    if not snapshots:
        return
    last = snapshots[-1]
    prompts = sum(last.buckets.values())
    subtitle = f"after step {last.version:,}: {prompts - last.buckets[UNSEEN]:,} of {prompts:,} prompts seen"
    figure = Figure(f"Curriculum of {run}", subtitle, panels=6)
    _pass_rates(figure, snapshots)
    _band(figure, snapshots)
    _buckets(figure, snapshots)
    _moves(figure, snapshots)
    _quotas(figure, snapshots)
    _mixed(figure, snapshots)
    figure.save(path)


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


def _pass_rates(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
    parts = windows(snapshots, COLUMNS)
    shares = [[count / max(1, sum(part[-1].histogram)) for count in part[-1].histogram] for part in parts]
    highest = max(max(column) for column in shares) or 1.0
    panel = figure.panel(
        "Pass rates of the prompts seen", "train step", "posterior mean of the pass rate", _steps(snapshots), (0, 1)
    )
    for part, column in zip(parts, shares, strict=True):
        for index, share in enumerate(column):
            hint = f"step {part[-1].version}: {share:.0%} of the prompts seen"
            panel.box(_span(part), (index / BINS, (index + 1) / BINS), shade(share / highest), hint)
    panel.scale("0 %", f"{highest:.0%} of the prompts seen".replace("%", " %", 1))


def _band(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
    panel = figure.panel("Hardness band", "train step", "pass rate", _steps(snapshots), (0, 1))
    banded = [snapshot for snapshot in snapshots if snapshot.band is not None]
    entries = [("groups drawn: share of rollouts that solve", DISTINCT[0])]
    if banded:
        low, high = (
            _across(banded, [(each.version, each.band[end]) for each in banded if each.band]) for end in (0, 1)
        )
        panel.area(low[0], low[1], high[1], BAND)
        entries.insert(0, ("band aimed at", BAND))
    points = []
    for part in windows(snapshots, WINDOWS):
        drawn = sum(each.drawn for each in part)
        if drawn:
            solved = sum(each.drawn * each.solve_rate for each in part if each.solve_rate is not None)
            points.append((_middle(part), solved / drawn))
    panel.line(*_across(snapshots, points), DISTINCT[0])
    panel.legend(entries)


def _buckets(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
    parts = [part[-1] for part in windows(snapshots, COLUMNS)]
    most = max(sum(each.buckets[name] for name in BUCKETS) for each in parts)
    panel = figure.panel("Prompts seen, by bucket", "train step", "prompts", _steps(snapshots), (0, most))
    base = [0.0] * (len(parts) + 2)
    for name, colour in zip(BUCKETS, ORDERED, strict=True):
        xs, counts = _across(snapshots, [(each.version, each.buckets[name]) for each in parts])
        top = [low + count for low, count in zip(base, counts, strict=True)]
        panel.area(xs, base, top, colour)
        base = top
    panel.legend(zip(BUCKETS, ORDERED, strict=True))


def _moves(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
    """The colour is that of the bucket moved into."""
    parts = windows(snapshots, WINDOWS)
    found = [_moved(part) for part in parts]
    up, down = (max(sum(into.values()) for into in directions) for directions in zip(*found, strict=True))
    panel = figure.panel(
        "Prompts that changed their bucket",
        "train step",
        "prompts per step; below 0: to a harder one",
        _steps(snapshots),
        (-max(down, 0.2 * up), max(up, 0.2 * down)),
    )
    if not up and not down:
        panel.note("none did")
    for part, directions in zip(parts, found, strict=True):
        left, right = _span(part)
        gap = (right - left) * 0.1
        for sign, into in zip((1, -1), directions, strict=True):
            base = 0.0
            for name, colour in zip(BUCKETS, ORDERED, strict=True):
                low, high = sorted((sign * base, sign * (base + into[name])))
                if into[name]:
                    panel.box((left + gap, right - gap), (low, high), colour, f"{into[name]:.2g} to {name}")
                base += into[name]
    panel.line(_steps(snapshots), (0, 0), INK, 1)
    panel.legend((f"to {name}", colour) for name, colour in zip(BUCKETS, ORDERED, strict=True))


def _moved(part: Window) -> tuple[dict[str, float], dict[str, float]]:
    """Prompts per step that moved to an easier and to a harder bucket, by that bucket."""
    easier, harder = (dict.fromkeys(BUCKETS, 0.0) for _ in range(2))
    for each in part:
        for move, count in each.moved.items():
            old, new = move.split(">")
            if UNSEEN not in (old, new):
                (easier if BUCKETS.index(new) > BUCKETS.index(old) else harder)[new] += count / len(part)
    return easier, harder


def _quotas(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
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
    most = max(max(sum(each.trained.values()), sum(each.asked.values())) for each in snapshots)
    panel = figure.panel(
        "Groups trained, by capability (dashed: the quotas asked)",
        "train step",
        "groups of a batch",
        _steps(snapshots),
        (0, most),
    )
    edges = [place for part in parts for place in _span(part)]  # flat over each window
    trained = [_mean([shares(each.trained) for each in part]) for part in parts]
    quotas = [_mean([shares(each.asked) for each in part]) for part in parts]
    for index in range(len(names)):
        low, high = ([sum(column[: index + more]) for column in trained for _ in range(2)] for more in (0, 1))
        panel.area(edges, low, high, DISTINCT[index])
    for index in range(len(names)):
        panel.line(edges, [sum(column[: index + 1]) for column in quotas for _ in range(2)], INK, 1.5, "5 3")
    short = (name if len(name) <= 14 else f"{name[:13]}…" for name in names)
    panel.legend(zip(short, DISTINCT, strict=False))


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _mixed(figure: Figure, snapshots: Sequence[CurriculumSnapshot]) -> None:
    panel = figure.panel(
        "Groups drawn that can teach: their outcomes are mixed",
        "train step",
        "share of the groups drawn",
        _steps(snapshots),
        (0, 1),
    )
    points = []
    for part in windows(snapshots, WINDOWS):
        drawn = sum(each.drawn for each in part)
        if drawn:
            points.append((_middle(part), sum(each.mixed for each in part) / drawn))
    panel.line(*_across(snapshots, points), DISTINCT[0])


def _across(
    snapshots: Sequence[CurriculumSnapshot], points: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """Points as columns, level to both edges of the panel, so that a single one is a line too."""
    if not points:
        return [], []
    first, last = _steps(snapshots)
    return [first, *(x for x, _ in points), last], [points[0][1], *(y for _, y in points), points[-1][1]]
