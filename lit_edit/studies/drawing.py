"""What the figures of the weight studies share: ability retained in one panel, every probe in one of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lit_edit.figures import MARKERS, PALETTE, figure
from lit_edit.studies.ability import Ability, Estimate

_GREY = "#555555"
_LEVELS = ("unedited model", "always the most frequent answer")


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Args:
        label: in the legend.
        colour: number of its colour and marker.
        at: position on the x axis, and the samples of the runs measured there (see :meth:`Ability.sample`).
        control: drawn dashed with open markers.
        shift: to the right, so that intervals of neighbouring lines do not hide each other.
    """

    label: str
    colour: int
    at: Sequence[tuple[float, Sequence[Tensor]]]
    control: bool = False
    shift: float = 0.0


@dataclass(frozen=True)
class Band:
    """One number with its interval, across the whole panel."""

    label: str
    colour: int
    samples: Sequence[Tensor] = field(default=())


def ability_panel(ability: Ability, lines: Sequence[Line], x: str, title: str, bands: Sequence[Band] = ()) -> Figure:
    """The ability retained, in percent of the unedited model's."""
    entries = len(lines) + len(bands) + 2
    made, (panel,) = figure(6.8, 4.2 + 0.17 * -(-entries // 2))
    for line in lines:
        _draw(panel, line, [_percent(ability.retained(samples)) for _, samples in line.at])
    for band in bands:
        _band(panel, band, _percent(ability.retained(band.samples)))
    _levels(panel, 100.0, None if (guess := ability.guesses()) is None else 100 * guess)
    panel.set(xlabel=x, ylabel="general ability retained\n(% of the unedited model's)")
    panel.set_title(title, fontsize=10)
    panel.set_ylim(min(-2.0, panel.get_ylim()[0]), max(104.0, panel.get_ylim()[1]))
    _legend(made, panel, [line.label for line in lines] + [band.label for band in bands], 2)
    return made


def probe_panels(ability: Ability, lines: Sequence[Line], x: str) -> Figure:
    """The number of every probe, each in a panel of its own."""
    count = len(ability.probes)
    columns = min(count, 4 if count > 6 else 3)
    rows = math.ceil(count / columns)
    made, panels = figure(max(2.6 * columns, 4.2), 2.3 * rows + 0.7, rows, columns)
    for number, (panel, probe) in enumerate(zip(panels, ability.probes, strict=False)):
        for line in lines:
            _draw(panel, line, [ability.number(probe.name, samples) for _, samples in line.at])
        _levels(panel, float(ability.start[number, 0]), ability.guess(probe.name))
        panel.set_title(probe.name.replace("_", " "), fontsize=9)
        if number >= count - columns:  # nothing stands below it
            panel.set_xlabel(x, fontsize=8)
        panel.set_ylabel(probe.shown.split("/")[0].replace("_", " "), fontsize=8)
        panel.tick_params(labelsize=7.5)
        if probe.shown.startswith("accuracy"):
            panel.set_ylim(-0.04, 1.04)
    for panel in panels[count:]:
        panel.remove()
    _legend(made, panels[0], [line.label for line in lines], min(columns, 3))
    return made


def _legend(made: Figure, panel: Axes, measured: Sequence[str], columns: int) -> None:
    """Under the panels, where it hides nothing: what was measured first, levels to compare with last."""
    handles, labels = panel.get_legend_handles_labels()
    handle = dict(zip(labels, handles, strict=True))
    order = [label for label in (*measured, *_LEVELS) if label in handle]
    shown = [handle[label] for label in order], order
    made.legend(*shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _percent(found: Estimate) -> Estimate:
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


def _draw(panel: Axes, line: Line, found: Sequence[Estimate]) -> None:
    known = [(x + line.shift, e) for (x, _), e in zip(line.at, found, strict=True) if math.isfinite(e.value)]
    # A percentile interval may leave its number just outside where items are few.
    below = [max(e.value - e.low, 0.0) for _, e in known]
    above = [max(e.high - e.value, 0.0) for _, e in known]
    panel.errorbar(
        [x for x, _ in known],
        [e.value for _, e in known],
        yerr=[below, above],
        label=line.label,
        color=PALETTE[line.colour % len(PALETTE)],
        marker=MARKERS[line.colour % len(MARKERS)],
        markerfacecolor="white" if line.control else None,
        linestyle="--" if line.control else "-",
        linewidth=1.1 if line.control else 1.6,
        elinewidth=0.9,
        capsize=2,
        markersize=4.5,
    )


def _band(panel: Axes, band: Band, found: Estimate) -> None:
    colour = PALETTE[band.colour % len(PALETTE)]
    panel.axhspan(found.low, found.high, color=colour, alpha=0.15, linewidth=0)
    panel.axhline(found.value, color=colour, linewidth=1.0, linestyle=":", label=band.label)


def _levels(panel: Axes, unedited: float, guess: float | None) -> None:
    panel.axhline(unedited, color=_GREY, linewidth=0.9, label=_LEVELS[0], zorder=1)
    if guess is not None:
        panel.axhline(guess, color=_GREY, linewidth=0.9, linestyle=(0, (1, 2)), label=_LEVELS[1], zorder=1)
