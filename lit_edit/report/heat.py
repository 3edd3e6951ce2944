"""A matrix as coloured cells, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from lit_edit.report.markup import node
from lit_edit.report.numbers import number

WIDTH = 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 46.0, 26.0, 38.0
_MOST = 48
_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, as TensorBoard's picture has it


def colour(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """The colour of a value, dark for ``low`` and bright for ``high``.

    Example:
        >>> colour(0.0), colour(1.0), colour(7.0)
        ('#440154', '#fde725', '#fde725')
    """
    place = min(max((value - low) / (high - low), 0.0), 1.0) * (len(_STOPS) - 1)
    lower = min(int(place), len(_STOPS) - 2)
    part = place - lower
    mixed = (round(a + (b - a) * part) for a, b in zip(_STOPS[lower], _STOPS[lower + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def heat_map(
    title: str,
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    low: float = 0.0,
    high: float = 1.0,
) -> Element | None:
    """Cells whose colour is their value; a pointer that rests on one is told it.

    Of a large matrix, rows and columns are shown at equal distances, the first and the last ones always.

    Args:
        title: of the map.
        matrix: values ``[rows][columns]``, ``None`` where there is nothing.
        rows: names of the rows.
        columns: names of the columns.
        row_label: what the rows are.
        column_label: what the columns are.
        low: value of the darkest colour.
        high: value of the brightest.

    Returns:
        The figure, or ``None`` if the matrix is empty.
    """
    if not rows or not columns:
        return None
    down, along = chosen(len(rows)), chosen(len(columns))
    wide = (WIDTH - _LEFT - _RIGHT) / len(along)
    tall = min(max(150.0 / len(down), 4.0), 26.0)
    bottom = _TOP + tall * len(down)
    drawing = node("svg", viewBox=f"0 0 {WIDTH:g} {bottom + _BOTTOM:g}", role="img", aria_label=title)
    drawing.append(node("text", row_label, x=4.0, y=13.0, class_="axis"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    drawing.append(node("text", column_label, x=middle, y=bottom + 32, class_="axis", text_anchor="middle"))
    for top, at in enumerate(down):
        for left, column in enumerate(along):
            value = matrix[at][column]
            if value is None:
                continue
            told = node("title", f"{row_label} {rows[at]}, {column_label} {columns[column]}: {number(value)}")
            place = {"x": _LEFT + left * wide, "y": _TOP + top * tall, "width": wide, "height": tall}
            drawing.append(node("rect", told, fill=colour(value, low, high), class_="cell", **place))
    for top in sparse(len(down), 8):
        drawing.append(_tick(rows[down[top]], _LEFT - 6, _TOP + (top + 0.5) * tall + 3.5, "end"))
    for left in sparse(len(along), 6):
        drawing.append(_tick(columns[along[left]], _LEFT + (left + 0.5) * wide, bottom + 14, "middle"))
    for step in range(20):  # the scale
        height = (bottom - _TOP) / 20
        value = high - (high - low) * (step + 0.5) / 20
        place = {"x": WIDTH - _RIGHT + 10, "y": _TOP + step * height, "width": 10.0, "height": height + 0.3}
        drawing.append(node("rect", fill=colour(value, low, high), **place))
    drawing.append(_tick(f"{high:g}", WIDTH - _RIGHT + 24, _TOP + 8, "start"))
    drawing.append(_tick(f"{low:g}", WIDTH - _RIGHT + 24, bottom, "start"))
    return node("figure", node("figcaption", title), drawing, class_="chart")


def chosen(count: int, most: int = _MOST) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, with the first and the last.

    Example:
        >>> chosen(3), chosen(101, most=3)
        ([0, 1, 2], [0, 50, 100])
    """
    if count <= most:
        return list(range(count))
    return [round(at * (count - 1) / (most - 1)) for at in range(most)]


def sparse(count: int, most: int) -> list[int]:
    """Indices of cells that get a name, at one distance from each other.

    Example:
        >>> sparse(4, 6), sparse(12, 6)
        ([0, 1, 2, 3], [0, 2, 4, 6, 8, 10])
    """
    return list(range(0, count, max(1, -(-count // most))))


def _tick(text: str, x: float, y: float, anchor: str) -> Element:
    return node("text", text, x=x, y=y, class_="tick", text_anchor=anchor)
