"""What all figures share: size, colours, grid, and how they become files and images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lit_edit.store import write_atomically

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Colours that colour-blind readers can tell apart, too (Okabe and Ito 2008; its yellow, pale on white, is a grey here)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""A second sign beside the colour, for print in black and white."""

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "svg.hashsalt": "lit_edit",  # the same picture is the same file
}


def figure(width: float = 6.4, height: float = 4.0, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``rows`` x ``columns`` panels, never shown on a screen and never known to pyplot.

    Args:
        width: inches.
        height: inches.
        rows: panels above each other.
        columns: panels beside each other.

    Returns:
        The figure and its panels, row by row.
    """
    with rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        panels = made.subplots(rows, columns, squeeze=False)
    return made, [panel for row in panels for panel in row]


def _dress(made: Figure) -> None:
    """Sizes of what was written into panels after they were made, when matplotlib had its own defaults again."""
    for panel in made.axes:
        panel.title.set_fontsize(_STYLE["axes.titlesize"])
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_fontsize(_STYLE["font.size"])
    for legend in [*made.legends, *(panel.get_legend() for panel in made.axes)]:
        if legend is not None:
            legend.set_frame_on(False)


def render(made: Figure, kind: str, dpi: int = 150) -> bytes:
    """The figure as ``png`` or ``svg``; the same figure gives the same bytes."""
    content = io.BytesIO()
    _dress(made)
    with rc_context(_STYLE):
        # A date would make every rendering another file.
        made.savefig(content, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return content.getvalue()


def save(made: Figure, path: Path) -> list[Path]:
    """Write ``<path>.png`` and ``<path>.svg``.

    Raises:
        EditError: if the folder cannot be written to.
    """
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        write_atomically(file, render(made, file.suffix[1:]))
    return files


def to_image(made: Figure, dpi: int = 150) -> Tensor:
    """The figure as a picture for TensorBoard, uint8 ``[3, height, width]``."""
    canvas = FigureCanvasAgg(made)
    _dress(made)
    with rc_context(_STYLE):
        made.set_dpi(dpi)
        canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).contiguous()
