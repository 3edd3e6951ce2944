"""The two pictures of a layer: its singular spectrum then and now, and where its dominant directions are now.

They are drawn to be read at the 350 pixels that TensorBoard gives a picture.

Legend: K = dominant directions, M = min(d_out, d_in), C = ranks shown.
"""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from lit_edit.figures import PALETTE, figure
from lit_edit.spectrum import Spectrum, Subspace

_SIZE = (4.6, 3.3)
_FOUND = 0.5
"""Cosine from which on an original direction counts as found again."""
_CELLS = (80, 240)
"""Most rows and columns of a picture: what is more than its pixels is joined, so that no bright cell gets lost."""


def spectrum_figure(then_M: Tensor, now_M: Tensor, rank: int, title: str) -> Figure:
    """Singular values of the original and of the edited weight by rank, with the dominant ones marked.

    Args:
        then_M: singular values of the original weight, descending.
        now_M: those of the edited weight.
        rank: number of dominant directions.
        title: of the picture.
    """
    made, (panel,) = figure(*_SIZE)
    panel.axvspan(0.5, rank + 0.5, color=PALETTE[7], alpha=0.18, linewidth=0)
    # A line as well: of thousands of ranks a few are too narrow a band to be seen.
    panel.axvline(rank + 0.5, color=PALETTE[7], linestyle=":", linewidth=1.2, label=f"dominant up to k = {rank}")
    shown: list[float] = []
    for sigma, name, colour, style in ((then_M, "original", PALETTE[0], "-"), (now_M, "edited", PALETTE[1], "--")):
        values = sigma.double().cpu()
        values = values[values > 0]  # a logarithm has no place for zero
        panel.plot(range(1, len(values) + 1), values.tolist(), style, color=colour, label=name)
        shown += values.tolist()
    panel.set(xlabel="rank of the singular value", ylabel="singular value", yscale="log")
    decades = math.log10(max(shown) / min(shown)) if shown else 0.0
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_title(title)
    panel.set_xlim(0.5, len(then_M) + 0.5)
    panel.legend(loc="best", frameon=False)
    return made


def overlap_figure(then: Subspace, now: Spectrum, title: str) -> Figure:
    r"""Absolute cosines :math:`|U_k(0)^T U(t)|` and :math:`|V_k(0)^T V(t)|` above each other; a diagonal if nothing moved.

    The edited weight's directions are shown up to the last one that an original direction is found in, at least ``k``: a
    dominant direction that others have outgrown is a bright cell right of the line at ``k``, one that was turned away is in no
    cell.

    Args:
        then: dominant subspaces of the original weight.
        now: complete spectrum of the edited weight.
        title: of the picture.
    """
    cosines = [(a.double().T @ b.double()).abs().cpu() for a, b in ((then.left, now.left), (then.right, now.right))]
    count = max(_reach(cosines_KM) for cosines_KM in cosines)
    made, panels = figure(*_SIZE, rows=2)
    for panel, cosines_KM, side in zip(panels, cosines, ("left", "right"), strict=True):
        rows = len(cosines_KM)
        cells = cosines_KM[:, :count]
        cells = adaptive_max_pool2d(cells[None], (min(rows, _CELLS[0]), min(count, _CELLS[1])))[0]
        shown = panel.imshow(
            cells.tolist(),
            vmin=0,
            vmax=1,
            cmap="cividis",
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, count + 0.5, rows + 0.5, 0.5),
        )
        if count > rows:
            panel.axvline(rows + 0.5, color="white", linestyle=":", linewidth=1.2)
        panel.grid(False)
        panel.set_ylabel(f"original, {side}")
        for axis, most in ((panel.xaxis, 6), (panel.yaxis, 4)):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))
    line = f"; dotted: k = {then.rank}" if count > then.rank else ""
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel(f"rank in the edited weight{line}")
    made.colorbar(shown, ax=panels, label="absolute cosine", shrink=0.9)
    panels[0].set_title(title)
    return made


def _reach(cosines_KM: Tensor) -> int:
    """How many ranks have to be shown, so that every original direction that is still there is among them."""
    best, where = cosines_KM.max(dim=1)
    found = where[best >= _FOUND]
    return max(len(cosines_KM), int(found.max()) + 1 if len(found) else 0)
