"""REVIVE: keep every update out of the dominant singular subspace of the original weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard, overlap
from lit_edit.spectrum import Energy, RankRule, Spectrum, Subspace, decompose, energy_rank


class REVIVE(Guard):
    r"""Write the update in the singular basis of the weight and drop each component that touches the dominant part.

    .. math:: \Delta' = (I - U_k U_k^T)\,\Delta\,(I - V_k V_k^T)

    which equals zeroing every :math:`\alpha_{ij} = u_i^T \Delta v_j` with :math:`i \le k` or :math:`j \le k` in the full
    basis; ``k`` is the smallest rank whose singular values sum to a share ``tau`` of all of them. The dominant triples
    then stay singular triples of the weight for ever: :math:`W_t v_i = \sigma_i u_i`, :math:`W_t^T u_i = \sigma_i v_i`.

    Source: arXiv 2601.11042. No official code is public; readings that differ are options.

    Args:
        tau: protected share of the spectral energy, in (0, 1); the paper's default is 0.1.
        energy: ``sigma`` (the paper) or ``sigma2``.
        of: ``original`` weight (the paper) or ``current``, recomputed before every batch.
        side: ``both`` (the paper), ``left`` (outputs) or ``right`` (inputs).
        basis: ``full`` keeps what lies outside the weight's row space; ``compact`` also drops it (a thin SVD read
            literally; it removes most of a useful edit where d_out < d_in).
        mode: ``project`` cuts after the solve (the paper); ``constrain`` makes the editor solve inside the allowed
            subspace, which is never worse on its own objective.
        rule: see :func:`lit_edit.spectrum.energy_rank`.

    Raises:
        EditError: if ``tau`` is outside (0, 1), or leaves nothing to write into.
    """

    needs_spectrum = True

    def __init__(
        self,
        tau: float = 0.1,
        energy: Energy = "sigma",
        of: Literal["original", "current"] = "original",
        side: Literal["both", "left", "right"] = "both",
        basis: Literal["full", "compact"] = "full",
        mode: Literal["project", "constrain"] = "project",
        rule: RankRule = "at_least",
    ) -> None:
        super().__init__()
        if not 0 < tau < 1:
            raise EditError(f"REVIVE's tau is {tau:g}; the protected share of the singular values must lie in (0, 1)")
        self.tau, self.energy, self.of, self.side = tau, energy, of, side
        self.basis, self.mode, self.rule = basis, mode, rule
        self._protected: dict[int, Subspace] = {}
        self._row_space: dict[int, Tensor] = {}
        self._of_weight: dict[int, Tensor] = {}

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """See :meth:`Guard.prepare`."""
        self._take(layer, spectrum if spectrum is not None else decompose(weight), weight)

    def _take(self, layer: int, spectrum: Spectrum, weight: Tensor) -> None:
        rank = energy_rank(spectrum.sigma, self.tau, self.energy, self.rule)
        if rank >= len(spectrum.sigma):
            raise EditError(
                f"REVIVE's tau of {self.tau:g} protects all {rank} singular directions of layer {layer}, "
                "so that no edit could be written; use a smaller tau"
            )
        keep = spectrum.subspace(rank)
        self._protected[layer] = Subspace(
            keep.left.to(weight.device)[:, : 0 if self.side == "right" else rank],
            keep.right.to(weight.device)[:, : 0 if self.side == "left" else rank],
        )
        if self.basis == "compact":
            self._row_space[layer] = spectrum.right.to(weight.device)

    def protected(self, layer: int) -> Subspace:
        """The protected directions of a layer (a side that is not guarded has none)."""
        return self._protected[layer]

    def avoid(self, layer: int, weight: Tensor) -> Subspace | None:
        """See :meth:`Guard.avoid`; the protected subspace in ``constrain`` mode."""
        self._keep_up(layer, weight)
        return self._protected[layer] if self.mode == "constrain" else None

    def _keep_up(self, layer: int, weight: Tensor) -> None:
        """With ``of="current"``, take the subspace of this weight, unless it is the one already taken."""
        if self.of == "original" or (layer in self._of_weight and torch.equal(self._of_weight[layer], weight)):
            return
        self._take(layer, decompose(weight), weight)
        self._of_weight[layer] = weight.detach().clone()

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`."""
        self._keep_up(layer, weight)
        protected = self._protected[layer]
        safe = delta.without_left(protected.left).without_right(protected.right)
        if self.basis == "compact":
            safe = _within_rows(safe, self._row_space[layer])
        return safe

    def report(self, layer: int, before: Delta, after: Delta) -> dict[str, float]:
        """See :meth:`Guard.report`; with the overlap with the protected directions."""
        return {**super().report(layer, before, after), **overlap(before, self._protected[layer])}


def _within_rows(delta: Delta, row_space_IM: Tensor) -> Delta:
    r"""Drop what lies outside the weight's row space: :math:`\Delta V V^T`."""
    outside = delta.without_right(row_space_IM)
    if delta.is_low_rank:
        left, right = delta.factors
        return Delta.low_rank(left, right - outside.factors[1])
    return Delta.from_dense(delta.dense() - outside.dense())
