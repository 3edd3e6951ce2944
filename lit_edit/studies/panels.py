"""Figures of streams: one panel a measure over one axis of edits, one line a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_edit.figures import MARKERS, PALETTE, figure
from lit_edit.studies.base import Result
from lit_edit.studies.measures import Measure
from lit_edit.studies.seeds import Estimate, band, band_is


def look(index: int) -> dict[str, Any]:
    """Colour and marker of a method; the ninth and later ones are dashed."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(PALETTE) else "--",
        "markersize": 4.5,
        "linewidth": 1.4,
    }


def panels_over_edits(
    groups: Mapping[str, Sequence[Result]], measures: Sequence[Measure], columns: int | None = None
) -> Figure:
    """One panel a measure that any run has, sharing the axis of edits.

    Args:
        groups: results of the runs of each method.
        measures: panels, in order.
        columns: panels beside each other; default: four or five, whichever leaves fewer places empty.
    """
    shown = [measure for measure in measures if any(measure.curve(one) for results in groups.values() for one in results)]
    fitting = min((4, 5), key=lambda count: -len(shown) % count)
    columns = max(1, min(columns or fitting, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    legend_rows = math.ceil(len(groups) / (2 * columns))
    made, axes = figure(2.6 * columns + 0.3, 2.0 * rows + 0.45 + 0.2 * legend_rows, rows, columns)
    for at, (panel, measure) in enumerate(zip(axes, shown, strict=False)):
        for index, results in enumerate(groups.values()):
            draw(panel, [measure.curve(one) for one in results], index)
        dress(panel, measure)
        if measure.collapsed is not None:
            panel.axhline(measure.collapsed, color="#444444", linewidth=0.8, linestyle=":")
        if at + columns >= len(shown):
            panel.set_xlabel("edits written")
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    share_x(axes[: len(shown)])
    legend(made, list(groups), 2 * columns, band_is(max(map(len, groups.values()), default=0)))
    return made


def draw(panel: Axes, curves: Sequence[Any], index: int) -> None:
    """Mean and band of some curves, in the look of method ``index``."""
    found = band(curves)
    if not found.edits:
        return
    every = max(1, round(len(found.edits) / 7))
    panel.plot(found.edits, found.mean, markevery=every, **look(index))
    if len(curves) > 1:
        panel.fill_between(found.edits, found.low, found.high, color=look(index)["color"], alpha=0.18, linewidth=0)


def bars(found: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of error bars below and above; an interval of skewed numbers may leave its number just outside."""
    return [[max(one.at - one.ends[0], 0.0) for one in found], [max(one.ends[1] - one.at, 0.0) for one in found]]


def dress(panel: Axes, measure: Measure) -> None:
    """Title, axis and limits that fit a measure."""
    panel.set_title(measure.label, loc="left", fontsize=8.5)
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if measure.log:
        panel.set_yscale("log")
    elif measure.bounds == (0.0, 1.0) or "[1 = unturned]" in measure.label:
        panel.set_ylim(-0.04, 1.04)
    else:
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, 0.0), max(1.03 * high, 1.04))
    panel.tick_params(labelsize=8, which="both")


def share_x(axes: Sequence[Axes]) -> None:
    """Give all panels the widest x range."""
    drawn = [panel for panel in axes if panel.lines]
    if drawn:
        low, high = min(p.get_xlim()[0] for p in drawn), max(p.get_xlim()[1] for p in drawn)
        for panel in axes:
            panel.set_xlim(low, high)


def legend(made: Figure, names: Sequence[str], columns: int, title: str, there: Sequence[str] | None = None) -> None:
    """Below all panels, where it covers nothing; of the names that have a look, those that are ``there``."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **look(index)) for index, name in enumerate(names) if there is None or name in there]
    made.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(columns, len(handles))), title=title, title_fontsize=8.5,
        fontsize=8.5, frameon=False,
    )  # fmt: skip
