"""The picture of how edits last: which cohort keeps what, at every look."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lit_edit.callbacks.cohorts import Cohorts
from lit_edit.figures import figure

_NUMBERS = (8, 8)
"""Most looks and cohorts whose scores are written into their cells."""
_NAMES = 6
"""Most names beside an axis."""


def retention_figure(cohorts: Cohorts, title: str, low: float = 0.0, high: float = 1.0) -> Figure:
    """Rows are looks, from the first one down, columns are cohorts; a cohort that was not written yet has no cell.

    Args:
        cohorts: what was found; at least one cohort and one look.
        title: of the picture.
        low: value of the darkest colour.
        high: value of the brightest.
    """
    matrix = [[math.nan if value is None else value for value in row] for row in cohorts.matrix()]
    looks = [f"{check.edits:,}" for check in cohorts.checks]
    written = [_span(group[0].batch, group[-1].batch) for group in cohorts.groups()]
    made, (panel,) = figure(4.6, 3.0)
    shown = panel.imshow(matrix, vmin=low, vmax=high, cmap="viridis", aspect="auto", interpolation="nearest")
    panel.grid(False)
    panel.set(xlabel="cohort: written in batch", ylabel="looked at after edits")
    for axis, names in ((panel.xaxis, written), (panel.yaxis, looks)):
        axis.set_major_locator(FixedLocator(range(0, len(names), -(-len(names) // _NAMES))))
        axis.set_major_formatter(FuncFormatter(_naming(names)))
    if len(looks) <= _NUMBERS[0] and len(written) <= _NUMBERS[1]:
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                if not math.isnan(value):
                    dark = value < low + (high - low) * 0.6
                    panel.text(
                        column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black", fontsize=8
                    )
    made.colorbar(shown, ax=panel, shrink=0.9)
    panel.set_title(title)
    return made


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def _naming(names: Sequence[str]) -> Callable[[float, int | None], str]:
    return lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else ""
