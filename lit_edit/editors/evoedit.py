"""EvoEdit: null-space editing whose null space shrinks by every fact written.

Legend: I = d_in, N = requests, Q = directions of earlier edits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_edit.batch.state import Growing
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.alphaedit import AlphaEdit
from lit_edit.editors.locate import joined
from lit_edit.errors import EditError
from lit_edit.solver import solve
from lit_edit.spectrum import Subspace


class EvoEdit(AlphaEdit):
    r"""Write only into input directions that neither the layer's usual inputs nor any earlier edit have used.

    .. math::
        \Delta = R\,(K^T P_t K + (\nu + 10^{-6})\,I)^{-1} (P_t K)^T, \qquad P_{t+1} = P_t - Q_t Q_t^T

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, :math:`P_1` AlphaEdit's projector, and ``Q_t`` an orthonormal
    basis of the span of :math:`P_t K`: left singular vectors whose singular value exceeds :math:`\max(d_{in}, n)\,\epsilon\,
    \sigma_1`. What an earlier key reads out is exactly unchanged by later batches: it is AlphaEdit with an infinite weight of
    the history. An edit takes one direction away for good, so that a layer has room for fewer than ``d_in`` edits; a batch that
    finds no direction left is refused.

    As published, a layer is skipped, and gives up no direction, if what is still missing at the last edited layer is less
    than 0.01 on average over the requests, or :math:`\|P_t K\|_F < 0.001`.

    State: the basis of all ``Q``, ``[d_in, q]`` float64 per layer.

    Source: arXiv 2510.13851; the code released with RLSEdit works in float32, whose :math:`\epsilon` leaves directions of
    up to a thousandth of :math:`\sigma_1` unprotected in a wide layer; here everything is float64.

    Args:
        threshold: eigenvalues of the mean second moment from here on are protected (``nullspace_threshold``).
        ridge: ``nu`` (``L2``; 4 for Llama-3-8B, 1 for GPT-J and GPT-2-XL).

    Raises:
        EditError: if a value is not positive, or the threshold leaves no direction to write into.
    """

    def __init__(self, threshold: float = 0.02, ridge: float = 4.0) -> None:
        super().__init__(threshold, ridge, history=False)
        self.written = nn.ModuleDict()
        self._skipped: set[int] = set()  # between the solve and the remembering of one batch

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        self.written[str(layer)] = Span(d_in)

    def span(self, layer: int) -> Span:
        """Directions of earlier edits of a layer."""
        span = self.written[str(layer)]
        assert isinstance(span, Span)
        return span

    def forbidden(self, layer: int) -> Tensor:
        """See :meth:`LeastSquaresEditor.forbidden`: what the layer usually reads, and what was written into."""
        return torch.cat([super().forbidden(layer), self.span(layer).basis], dim=1)

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`LocateThenEdit.solve`.

        Raises:
            EditError: if no direction is left.
        """
        closed = self.forbidden(layer)
        if closed.shape[1] >= keys.shape[1]:
            raise EditError(f"all {keys.shape[1]} input directions of layer {layer} are protected, so EvoEdit has no room left")
        open_NI = _outside(keys, closed)
        to_go = sum(other >= layer for other in self._closed)
        missing = to_go * float(residuals.double().norm(dim=1).mean())
        if missing < 1e-2 or float(open_NI.norm()) < 1e-3:
            self._skipped.add(layer)
            return Delta.low_rank(residuals.new_zeros(residuals.shape[1], 1).double(), open_NI.new_zeros(1, keys.shape[1]))
        self._skipped.discard(layer)
        if avoid is not None:
            residuals = remove_columns(residuals.double().T, avoid.left).T
            open_NI = _outside(keys, joined(closed, avoid.right))
        # On keys inside an open subspace, a multiple of the identity needs no solving inside of it.
        return solve(lambda columns: columns / (self.ridge + 1e-6), open_NI, residuals)

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`LocateThenEdit.remember`; the directions of these keys are closed."""
        if layer not in self._skipped:
            self.span(layer).append(_outside(keys, self.forbidden(layer)))


class Span(Growing):
    """An orthonormal basis that grows.

    Args:
        d_in: length of its vectors.
    """

    basis: Tensor  # [I, Q] float64

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(d_in, 0, dtype=torch.float64))

    def append(self, keys_NI: Tensor) -> None:
        """Add the span of some vectors that are orthogonal to the basis."""
        u, s, _ = torch.linalg.svd(keys_NI.double().T, full_matrices=False)
        kept = s > max(keys_NI.shape) * torch.finfo(s.dtype).eps * s[0]
        self.basis = torch.cat([self.basis, u[:, kept].to(self.basis)], dim=1)


def _outside(keys_NI: Tensor, closed_IQ: Tensor) -> Tensor:
    """The part of some keys outside a subspace; twice, since a part much smaller than the key keeps too much the first time."""
    return remove_columns(remove_columns(keys_NI.double().T, closed_IQ), closed_IQ).T
