"""Line charts as SVG in the page: their colours follow the reader's light or dark theme, their texts can be selected.

Legend: a chart is drawn on a grid of ``WIDTH`` x ``HEIGHT`` units and scaled to its place; all positions are in these units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from lit_edit.report.markup import fill, node
from lit_edit.report.numbers import number, tick_labels, ticks

COLOURS = 8
"""Number of colours in the style sheet, ``--line-0`` and so on; told apart by colour-blind readers, too."""

WIDTH, HEIGHT = 360.0, 226.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 26.0, 38.0
_DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "5 2", "1.5 3.5", "12 4", "4 2 1 2")
_MOST = 60
_SHAPES = (
    "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "M-2.7,-2.7h5.4v5.4h-5.4z",
    "M0,-3.6L3.4,2.6H-3.4z",
    "M0,-3.8L3.4,0L0,3.8L-3.4,0z",
    "M0,3.6L3.4,-2.6H-3.4z",
    "M-1,-3.2h2v2.2h2.2v2h-2.2v2.2h-2v-2.2h-2.2v-2h2.2z",
    "M-3,-1.8L-1.8,-3L0,-1.2L1.8,-3L3,-1.8L1.2,0L3,1.8L1.8,3L0,1.2L-1.8,3L-3,1.8L-1.2,0z",
    "M-3.4,-1.5h6.8v3h-6.8z",
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    points: Sequence[Point]
    style: int = 0
    """Colour, dash and marker; the same line should have the same one in all charts."""
    band: Sequence[tuple[float, float, float]] = field(default=())
    """``(x, low, high)`` of intervals."""


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, x_range: Point | None = None, y_range: Point | None = None
) -> Element | None:
    """Lines over a common axis; a pointer that rests on a marker is told its exact values.

    Args:
        title: of the chart, in words.
        series: what to draw; points that are not finite are left out.
        x_label: what the x axis counts, with its unit.
        y_label: what the y axis measures, with its unit.
        x_range: ends of the x axis; by default those of the points. Charts with the same ends can be read across.
        y_range: ends of the y axis; by default, and where points lie outside, those of the points, on a logarithmic axis if
            they are far apart.

    Returns:
        The figure, or ``None`` if there is no point to draw.
    """
    lines = [(one, thin(finite(one.points))) for one in series]
    points = [point for _, line in lines for point in line]
    if not points:
        return None
    x_low, x_high = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    values = [y for _, y in points]
    y_low, y_high = min(values), max(values)
    log = y_range is None and y_low > 0 and y_high > 100 * y_low
    across = _Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    up = _Axis(*_ends(y_low, y_high, y_range, log), HEIGHT - _BOTTOM, _TOP + 4, log)
    drawing = node("svg", viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=f"{title}: {_spoken(lines)}")
    drawing.append(node("text", f"{y_label}{', logarithmic' if log else ''}", x=4.0, y=13.0, class_="axis"))
    drawing.append(node("text", x_label, x=(_LEFT + WIDTH - _RIGHT) / 2, y=HEIGHT - 6, class_="axis", text_anchor="middle"))
    fill(drawing, _grid(across, up))
    for one, _ in lines:
        drawing.append(_band(one, across, up))
    fill(drawing, [_line(one, line, across, up, x_label) for one, line in lines if line])
    return node("figure", node("figcaption", title), drawing, class_="chart")


def legend(series: Sequence[tuple[str, int]]) -> Element:
    """What lines stand for: labels with their styles."""
    items = []
    for label, style in series:
        line = node("path", d="M0,7H34", class_="line", stroke_dasharray=_DASHES[style % len(_DASHES)] or None)
        mark = node("path", d=_SHAPES[style % len(_SHAPES)], transform="translate(17 7)", class_="mark")
        swatch = node("svg", line, mark, viewBox="0 0 34 14", class_=_colour(style), aria_hidden="true")
        items.append(node("li", swatch, label))
    return node("ul", *items, class_="legend")


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thin(points: Sequence[Point], most: int = _MOST) -> list[Point]:
    """At most ``most`` points: the first, the last, and the lowest and highest of every stretch between; no peak is lost.

    Example:
        >>> peak = [(float(x), 9.0 if x == 500 else x / 1000) for x in range(1001)]
        >>> few = thin(peak)
        >>> len(few) <= 60, (500.0, 9.0) in few, few[0] == peak[0], few[-1] == peak[-1]
        (True, True, True, True)
    """
    if len(points) <= most:
        return list(points)
    inner, parts = range(1, len(points) - 1), (most - 2) // 2
    kept = {0, len(points) - 1}
    for part in range(parts):
        stretch = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]


@dataclass(frozen=True)
class _Axis:
    """Where values stand."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start), 2)

    def marks(self, most: int) -> list[tuple[float, str]]:
        """Ticks and their texts."""
        if not self.log:
            values = ticks(self.low, self.high, most) if self.high > self.low else [self.low]
            return list(zip(values, tick_labels(values), strict=True))
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        step = max(1, -(-len(powers) // most))
        return [(10.0**power, f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}") for power in powers[::step]]


def _ends(low: float, high: float, wanted: Point | None, log: bool) -> Point:
    """Ends of the y axis, with room above and below; never so close that changes below one in twenty look like large ones."""
    if log:
        return low / 1.5, high * 1.5
    if wanted is not None:
        error = 1e-6 * (wanted[1] - wanted[0])  # a share may be 1 + 1e-16
        if wanted[0] - error <= low and high <= wanted[1] + error:
            return wanted
        low, high = min(low, wanted[0]), max(high, wanted[1])
    missing = 0.05 * max(abs(low), abs(high)) - (high - low)
    room = 0.06 * (high - low) + max(missing, 0.0) / 2 or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def _grid(across: _Axis, up: _Axis) -> list[Element]:
    made = []
    for value, text in up.marks(5):
        made.append(node("path", d=f"M{_LEFT},{up(value)}H{WIDTH - _RIGHT}", class_="grid"))
        made.append(node("text", text, x=_LEFT - 6, y=up(value) + 3.5, class_="tick", text_anchor="end"))
    for value, text in _whole(across.marks(5)):
        made.append(node("path", d=f"M{across(value)},{HEIGHT - _BOTTOM}v4", class_="base"))
        made.append(node("text", text, x=across(value), y=HEIGHT - _BOTTOM + 15, class_="tick", text_anchor="middle"))
    made.append(node("path", d=f"M{_LEFT},{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}", class_="base"))
    return made


def _whole(marks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Only whole numbers, where there are two: edits and batches are counted."""
    values = [value for value, _ in marks if value == int(value)]
    return list(zip(values, tick_labels(values), strict=True)) if len(values) > 1 else marks


def _band(one: Series, across: _Axis, up: _Axis) -> Element:
    found = [(x, low, high) for x, low, high in one.band if all(map(math.isfinite, (x, low, high)))]
    if up.log or not found:
        return node("g")
    inside = [(across(x), up(max(low, up.low)), up(min(high, up.high))) for x, low, high in found]
    if len(inside) == 1:
        x, low, high = inside[0]
        return node("path", d=f"M{x},{low}V{high}", class_=f"{_colour(one.style)} line")
    there = "L".join(f"{x},{high}" for x, _, high in inside)
    back = "L".join(f"{x},{low}" for x, low, _ in reversed(inside))
    return node("path", d=f"M{there}L{back}z", class_=f"{_colour(one.style)} band")


def _line(one: Series, line: Sequence[Point], across: _Axis, up: _Axis, x_label: str) -> Element:
    places = [(across(x), up(y)) for x, y in line]
    made = node("g", class_=_colour(one.style))
    path = "M" + "L".join(f"{x},{y}" for x, y in places)
    made.append(node("path", d=path, class_="line", stroke_dasharray=_DASHES[one.style % len(_DASHES)] or None))
    small = " small" if len(line) > 30 else ""
    for (x, y), (left, top) in zip(line, places, strict=True):
        told = node("title", f"{one.label}: {number(y)} at {x:g} {x_label}")
        shape = _SHAPES[one.style % len(_SHAPES)]
        made.append(node("path", told, d=shape, transform=f"translate({left} {top})", class_=f"mark{small}"))
    return made


def _spoken(lines: Sequence[tuple[Series, Sequence[Point]]]) -> str:
    """The chart for those who hear it."""
    return "; ".join(f"{one.label} from {number(line[0][1])} to {number(line[-1][1])}" for one, line in lines if line)


def _colour(style: int) -> str:
    return f"c{style % COLOURS}"
