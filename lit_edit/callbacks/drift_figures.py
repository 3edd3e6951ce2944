"""The two pictures of a layer: its singular spectrum then and now, and how its dominant directions overlap.

Legend: K = dominant directions, M = min(d_out, d_in).
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lit_edit.figures import PALETTE, figure
from lit_edit.spectrum import Subspace


def spectrum_figure(then_M: Tensor, now_M: Tensor, rank: int, title: str) -> Figure:
    """Singular values of the original and of the edited weight by rank, with the dominant ones marked.

    Args:
        then_M: singular values of the original weight, descending.
        now_M: those of the edited weight.
        rank: number of dominant directions.
        title: of the picture.
    """
    made, (panel,) = figure(6.4, 3.8)
    panel.axvspan(0.5, rank + 0.5, color=PALETTE[7], alpha=0.18, linewidth=0)
    # A line as well: of thousands of ranks a few are too narrow a band to be seen.
    panel.axvline(rank + 0.5, color=PALETTE[7], linestyle=":", linewidth=1.2, label=f"dominant up to k = {rank}")
    for sigma, name, colour, style in ((then_M, "original", PALETTE[0], "-"), (now_M, "edited", PALETTE[1], "--")):
        values = sigma.double().cpu()
        values = values[values > 0]  # a logarithm has no place for zero
        panel.plot(range(1, len(values) + 1), values.tolist(), style, color=colour, label=name)
    panel.set(xlabel="rank of the singular value", ylabel="singular value", yscale="log")
    panel.set_title(title, fontsize=10)
    panel.set_xlim(0.5, len(then_M) + 0.5)
    panel.legend(loc="best", frameon=False, fontsize=9)
    return made


def overlap_figure(then: Subspace, now: Subspace, title: str) -> Figure:
    r"""Absolute cosines :math:`|U_k(0)^T U_k(t)|` and :math:`|V_k(0)^T V_k(t)|` beside each other; a diagonal if nothing moved.

    Args:
        then: dominant subspaces of the original weight.
        now: those of the edited weight, of the same ranks.
        title: of the picture.
    """
    made, panels = figure(7.2, 3.6, columns=2)
    for panel, side, a, b in ((panels[0], "left", then.left, now.left), (panels[1], "right", then.right, now.right)):
        overlap_KK = (a.double().T @ b.double()).abs().cpu()
        count = len(overlap_KK)
        shown = panel.imshow(
            overlap_KK.tolist(),
            vmin=0,
            vmax=1,
            cmap="cividis",
            interpolation="nearest",
            extent=(0.5, count + 0.5, count + 0.5, 0.5),
        )
        panel.grid(False)
        panel.set(xlabel="rank, edited", ylabel="rank, original")
        panel.set_title(f"{side} singular vectors", fontsize=9)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    made.colorbar(shown, ax=panels, label="absolute cosine", shrink=0.9)
    made.suptitle(title, fontsize=10)
    return made
