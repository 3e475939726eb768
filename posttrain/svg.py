"""Plots as SVG: panels with axes, ticks and a legend, which any browser shows and no library has to draw.

Colours can be told apart with any colour vision: viridis where they are an order, Okabe and Ito's
(https://jfly.uni-koeln.de/color/) where they are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

ORDERED = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Of five steps from low to high."""
DISTINCT = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
"""Of things without an order."""
LIGHT, DARK = "#f1f6fb", "#08306b"
"""Ends of a colour scale."""
BAND = "#f3cfb3"
INK, FAINT = "#222222", "#dddddd"
SIZE = 12
"""Of the font, in pixels."""
WIDE = 7.2
"""Pixels of a letter, generously."""

Range = tuple[float, float]


def shade(share: float) -> str:
    """A colour from LIGHT (0) to DARK (1)."""
    ends = [[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in (LIGHT, DARK)]
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in zip(*ends, strict=True))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    Example: `ticks(0, 225) == [0, 50, 100, 150, 200]`
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


class Figure:
    """Panels in two columns under a title."""

    WIDTH, PANEL_HEIGHT, TOP = 1160, 360, 66

    def __init__(self, title: str, subtitle: str, panels: int) -> None:
        """An empty page for so many panels."""
        self._height = self.TOP + self.PANEL_HEIGHT * math.ceil(panels / 2)
        self.root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {self.WIDTH} {self._height}",
                "width": str(self.WIDTH),
                "height": str(self._height),
                "font-family": "Helvetica, Arial, sans-serif",
                "font-size": str(SIZE),
                "fill": INK,
            },
        )
        ET.SubElement(self.root, "title").text = title
        ET.SubElement(self.root, "rect", {"width": "100%", "height": "100%", "fill": "white"})
        _text(self.root, 24, 32, title, {"font-size": "20", "font-weight": "bold"})
        _text(self.root, 24, 52, subtitle, {"fill": "#555555"})
        self._count = 0

    def panel(self, title: str, x_label: str, y_label: str, x_range: Range, y_range: Range) -> Panel:
        """The next panel, left to right and down."""
        column, row = self._count % 2, self._count // 2
        self._count += 1
        x, y = column * self.WIDTH / 2, self.TOP + row * self.PANEL_HEIGHT
        return Panel(self.root, x + 82, y + 62, title, x_label, y_label, x_range, y_range)

    def save(self, path: Path) -> None:
        """Writes the page atomically."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(ET.tostring(self.root, encoding="unicode") + "\n")
        temporary.replace(path)


class Panel:
    """One plot, in units of its data."""

    WIDTH, HEIGHT = 470, 226

    def __init__(
        self,
        root: ET.Element,
        left: float,
        top: float,
        title: str,
        x_label: str,
        y_label: str,
        x_range: Range,
        y_range: Range,
    ) -> None:
        """Axes with ticks and labels; `left` and `top` are those of the area in between, in pixels."""
        self._left, self._top, self._x, self._y = left, top, _some(x_range), _some(y_range)
        self._group = ET.SubElement(root, "g")
        _text(self._group, left, top - 42, title, {"font-weight": "bold", "font-size": "14"})
        bottom = top + self.HEIGHT
        for value in ticks(*self._x):
            x = self._across(value)
            _line(self._group, [(x, bottom), (x, bottom + 4)], INK)
            _text(self._group, x, bottom + 18, f"{value:,g}", {"text-anchor": "middle"})
        for value in ticks(*self._y):
            y = self._up(value)
            _line(self._group, [(left, y), (left + self.WIDTH, y)], FAINT)
            _text(self._group, left - 8, y + 4, f"{abs(value):,g}", {"text-anchor": "end"})
        _text(self._group, left + self.WIDTH / 2, bottom + 36, x_label, {"text-anchor": "middle"})
        x, y = left - 62, top + self.HEIGHT / 2
        turned = {"text-anchor": "middle", "transform": f"rotate(-90 {x:g} {y:g})"}
        _text(self._group, x, y, y_label, turned)
        self._inside = ET.SubElement(self._group, "g")
        _line(self._group, [(left, top), (left, bottom), (left + self.WIDTH, bottom)], INK)

    def _across(self, value: float) -> float:
        return self._left + self.WIDTH * (value - self._x[0]) / (self._x[1] - self._x[0])

    def _up(self, value: float) -> float:
        return self._top + self.HEIGHT * (self._y[1] - value) / (self._y[1] - self._y[0])

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float = 2, dash: str = "") -> None:
        """A line through points."""
        points = [(self._across(x), self._up(y)) for x, y in zip(xs, ys, strict=True)]
        _line(self._inside, points, colour, width, dash)

    def area(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str) -> None:
        """What lies between two lines."""
        there = [(self._across(x), self._up(y)) for x, y in zip(xs, highs, strict=True)]
        back = [(self._across(x), self._up(y)) for x, y in zip(xs, lows, strict=True)][::-1]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in there + back)
        ET.SubElement(self._inside, "polygon", {"points": points, "fill": colour})

    def box(self, x_range: Range, y_range: Range, colour: str, hint: str = "") -> None:
        """A filled rectangle; the hint shows under a pointer."""
        (left, right), (low, high) = x_range, y_range
        rectangle = ET.SubElement(
            self._inside,
            "rect",
            {
                "x": f"{self._across(left):.1f}",
                "y": f"{self._up(high):.1f}",
                "width": f"{self._across(right) - self._across(left):.1f}",
                "height": f"{self._up(low) - self._up(high):.1f}",
                "fill": colour,
                "shape-rendering": "crispEdges",
            },
        )
        if hint:
            ET.SubElement(rectangle, "title").text = hint

    def note(self, text: str) -> None:
        """A remark in the middle."""
        middle = {"text-anchor": "middle", "fill": "#777777"}
        _text(self._group, self._left + self.WIDTH / 2, self._top + self.HEIGHT / 2, text, middle)

    def legend(self, entries: Iterable[tuple[str, str]]) -> None:
        """Names and their colours, above the panel, in two rows where one is too short."""
        x, y = self._left, self._top - 22
        for name, colour in entries:
            width = 14 + WIDE * len(name)
            if x + width > self._left + self.WIDTH:
                x, y = self._left, y + 15
            square = {"x": f"{x:g}", "y": f"{y - 9:g}", "width": "10", "height": "10", "fill": colour}
            ET.SubElement(self._group, "rect", {**square, "stroke": "#888888", "stroke-width": "0.5"})
            _text(self._group, x + 14, y, name, {})
            x += width + 14

    def scale(self, low: str, high: str) -> None:
        """A legend of `shade`: what its two ends mean."""
        x, y, step = self._left, self._top - 22, 8
        _text(self._group, x, y, low, {})
        x += WIDE * len(low) + 8
        for index in range(11):
            square = {"x": f"{x:g}", "y": f"{y - 9:g}", "width": str(step), "height": "10", "fill": shade(index / 10)}
            ET.SubElement(self._group, "rect", square)
            x += step
        _text(self._group, x + 6, y, high, {})


def _some(limits: Range) -> Range:
    """Limits that are apart."""
    low, high = limits
    return (low, high) if high > low else (low, low + 1)


def _text(parent: ET.Element, x: float, y: float, text: str, attributes: Mapping[str, str]) -> None:
    ET.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **attributes}).text = text


def _line(
    parent: ET.Element, points: Sequence[tuple[float, float]], colour: str, width: float = 1, dash: str = ""
) -> None:
    attributes = {
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "fill": "none",
        "stroke": colour,
        "stroke-width": f"{width:g}",
        "stroke-linejoin": "round",
    }
    ET.SubElement(parent, "polyline", attributes | ({"stroke-dasharray": dash} if dash else {}))
