"""SPHERE: fade a change out of the directions in which the neurons of the weight crowd.

Legend: O = d_out, I = d_in, D = width of the side that is guarded, K = soft directions.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard, overlap
from lit_edit.guards.prune import leading
from lit_edit.spectrum import Subspace, energy_rank

Side = Literal["input", "output"]


class SPHERE(Guard):
    r"""Scale down the part of a change that lies in the principal directions of the normalised rows of the weight.

    .. math:: \Delta' = \Delta\,(I - \alpha\, U_r U_r^T), \qquad
        \tfrac1m {\hat W}^T \hat W = U \Lambda U^T, \qquad
        \hat w_i = \frac{w_i}{\|w_i\| + 10^{-8}}, \qquad
        r = 1 + \#\left\{j : \sum_{i \le j} \lambda_i \le \eta \sum_i \lambda_i\right\}

    with :math:`w_i` the ``m`` rows of the *current* weight ``[d_out, d_in]``, so :math:`U_r` is ``[d_in, r]`` and is found anew
    for every change. A change of low rank stays one. :math:`U_r` comes from the Gram matrix of the smaller side: the same
    directions as from the released eigenproblem of size ``d_in``.

    Source: arXiv 2510.01172 and its released code. What differs from released code:

    * The code works on the matrix as it is stored. GPT-2 stores ``[d_in, d_out]``, so there it normalises what each *input*
      writes and cuts the output side; ``side="output"`` reproduces that, and any other model needs ``side="input"``.
    * EasyEdit's copy cuts only what is written at last, while later layers of a batch see the uncut change. Not reproduced.

    Args:
        eta: share of the squared singular values that decides ``r``, in (0, 1).
        alpha: how much is taken out, in (0, 1]; 0.5 on AlphaEdit, 0.8 on MEMIT, PRUNE and RECT, 1 is a projection.
        side: ``input`` (the paper) or ``output`` (:math:`\Delta' = (I - \alpha U_r U_r^T) \Delta` from the columns).

    Raises:
        EditError: if ``eta`` is outside (0, 1), ``alpha`` outside (0, 1], or ``side`` none of those named.
    """

    def __init__(self, eta: float = 0.5, alpha: float = 0.5, side: Side = "input") -> None:
        super().__init__()
        if not 0 < eta < 1:
            raise EditError(f"SPHERE's eta is {eta:g}; the share of energy of the soft directions must lie in (0, 1)")
        if not 0 < alpha <= 1:
            raise EditError(f"SPHERE's alpha is {alpha:g}; the share to take out must lie in (0, 1]")
        if side not in ("input", "output"):
            raise EditError(f"SPHERE's side is {side!r}; it must be input or output")
        self.eta, self.alpha, self.side = eta, alpha, side
        self._soft: dict[int, Subspace] = {}

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`."""
        basis = soft_directions(weight if self.side == "input" else weight.T, self.eta)
        none = basis.new_zeros(weight.shape[0 if self.side == "input" else 1], 0)
        space = Subspace(none, basis) if self.side == "input" else Subspace(basis, none)
        self._soft[layer] = space
        outside = delta.without_left(space.left).without_right(space.right)
        if delta.is_low_rank:  # one factor is the same on both ends
            (left, right), (left_end, right_end) = delta.factors, outside.factors
            return Delta.low_rank(left.lerp(left_end, self.alpha), right.lerp(right_end, self.alpha))
        return Delta.from_dense(delta.dense().lerp(outside.dense(), self.alpha))

    def soft(self, layer: int) -> Subspace:
        """The directions that the latest change of a layer was faded out of (none on the other side)."""
        return self._soft[layer]

    def report(self, layer: int, before: Delta, after: Delta) -> dict[str, float]:
        """See :meth:`Guard.report`; with the overlap with the soft directions."""
        return {**super().report(layer, before, after), **overlap(before, self._soft[layer])}


def soft_directions(rows_MD: Tensor, eta: float) -> Tensor:
    """The directions :math:`U_r` of :class:`SPHERE`, ``[d, r]``, orthonormal, float64.

    Args:
        rows_MD: ``[m, d]``; rows are normalised here.
        eta: see :class:`SPHERE`.
    """
    rows = rows_MD.double()
    unit = rows / (rows.norm(dim=1, keepdim=True) + 1e-8)
    return leading(Delta.from_dense(unit), lambda sigma: energy_rank(sigma, eta, "sigma2", "released") + 1)[2]
