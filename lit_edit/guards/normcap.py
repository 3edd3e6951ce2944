"""NormCap: bounds on the size of one change and of all changes together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard
from lit_edit.spectrum import Spectrum


class NormCap(Guard):
    r"""Scale a change down until it fits.

    .. math:: \Delta' = c\,\Delta, \qquad c = \max\{c \in [0, 1] :
        \|c \Delta\|_F \le \text{per\_batch},\; \|W + c \Delta - W_0\|_F \le \text{of\_original} \cdot \|W_0\|_F\}

    with ``W`` ``[d_out, d_in]`` the weight before this change and :math:`W_0` the original one. Where no scale fits, because
    earlier changes are outside already and this one does not lead back, :math:`c = 0`. A later guard could lead outside
    again: write this one last. The direction of a change is never altered, and low rank stays low rank.

    The method is the project's own control: what a bound on the norm alone achieves.

    Args:
        per_batch: largest Frobenius norm of a change as it is written; ``None`` for no bound. An editor that changes a
            layer several times in a batch has each of these changes bounded.
        of_original: largest Frobenius norm of all changes together, as a share of the original weight's; ``None`` for no
            bound.

    Raises:
        EditError: if neither bound is given, or one is not positive.
    """

    def __init__(self, per_batch: float | None = None, of_original: float | None = None) -> None:
        super().__init__()
        if per_batch is None and of_original is None:
            raise EditError("NormCap bounds nothing: give per_batch, of_original or both")
        for name, bound in (("per_batch", per_batch), ("of_original", of_original)):
            if bound is not None and not 0 < bound < math.inf:
                raise EditError(f"NormCap's {name} is {bound:g}; a bound must be positive and finite")
        self.per_batch, self.of_original = per_batch, of_original
        self._original: dict[int, Tensor] = {}

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """See :meth:`Guard.prepare`; keeps the original weight where a bound needs it."""
        if self.of_original is not None:
            self._original[layer] = weight.detach()

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`."""
        scale, norm = 1.0, float(delta.norm())
        if not 0 < norm < math.inf:  # nothing to scale, or for the trainer to refuse
            return delta
        if self.per_batch is not None:
            scale = min(scale, self.per_batch / norm)
        if self.of_original is not None:
            original = self._original[layer].to(weight.device).double()
            earlier = weight.double() - original
            limit = self.of_original * float(original.norm())
            scale = largest_step(float(earlier.norm()), _inner(earlier, delta), norm, limit, scale)
        if scale == 1.0:
            return delta
        if delta.is_low_rank:
            left, right = delta.factors
            return Delta.low_rank(left * scale, right)
        return Delta.from_dense(delta.dense() * scale)


def largest_step(start: float, inner: float, norm: float, limit: float, most: float = 1.0) -> float:
    r"""The largest :math:`c \in [0, \text{most}]` with :math:`\|B + c \Delta\|_F \le \text{limit}`, 0 where there is none.

    .. math:: c^2 \|\Delta\|^2 + 2 c \langle B, \Delta \rangle + \|B\|^2 - \text{limit}^2 \le 0

    Args:
        start: :math:`\|B\|_F`.
        inner: :math:`\langle B, \Delta \rangle`.
        norm: :math:`\|\Delta\|_F`, positive.
        limit: the bound, not negative.
        most: largest step asked for.
    """
    excess = (start - limit) * (start + limit)
    quarter = inner**2 - norm**2 * excess
    if quarter < 0:  # the line never meets the ball
        return 0.0
    # Roots without cancellation: one by the usual formula, the other from their product, excess / norm^2.
    far = -(inner + math.copysign(math.sqrt(quarter), inner))
    roots = sorted((far / norm**2, excess / far if far != 0 else 0.0))
    if roots[0] > most or roots[1] < 0:
        return 0.0
    return min(most, roots[1])


def _inner(matrix_OI: Tensor, delta: Delta) -> float:
    """Inner product of a matrix and a change in float64; of factors without forming their product."""
    if delta.is_low_rank:
        left, right = (factor.double() for factor in delta.factors)
        return float(torch.sum((matrix_OI @ right.T) * left))
    return float(torch.sum(matrix_OI * delta.dense().double()))
