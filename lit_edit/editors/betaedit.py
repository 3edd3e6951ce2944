"""BetaEdit: null-space editing that pays for what leaks out of the null space.

Legend: I = d_in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_edit.algebra.inverses import SpectralInverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.batch.state import Growing
from lit_edit.delta import Delta
from lit_edit.editors.locate import required
from lit_edit.editors.preserving import PreservingEditor
from lit_edit.errors import EditError, Rejected
from lit_edit.spectrum import Subspace


class BetaEdit(PreservingEditor):
    r"""AlphaEdit with a penalty on what the layer reads *inside* its null space, and a projector that is kept up to date.

    .. math:: \Delta = R\,(PK)^T \bigl(P\,(K K^T + H H^T + \lambda C)\,P + \nu I\bigr)^{-1}, \qquad P = I - U U^T

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, keys ``H`` of the ``h`` earlier edits, second moment ``C``.
    ``U`` are eigenvectors whose eigenvalue reaches ``threshold``: of ``C`` to begin with, and after every ``refresh`` edits of
    :math:`(H H^T / h + \lambda C) / (1 + \lambda)`.

    Source: arXiv 2605.09285. The released code edits in batches of one, solves in float32, and ends the run at a change
    with :math:`\|\Delta\|_F / \sqrt{n}` over 20; here such a batch is rejected and the stream goes on.

    Args:
        threshold: eigenvalues from here on are protected (``nullspace_threshold``).
        lam: weight of the leakage penalty.
        ridge: ``nu``.
        refresh: edits between two refreshes of the projector, each of which takes one ``d_in x d_in`` eigendecomposition.
        limit: largest :math:`\|\Delta\|_F / \sqrt{n}` of a layer; ``null`` for none.

    Raises:
        EditError: if a value is not positive, or the threshold leaves no direction to write into.
    """

    def __init__(
        self,
        threshold: float = 0.02,
        lam: float = 3000.0,
        ridge: float = 10.0,
        refresh: int = 1000,
        limit: float | None = 20.0,
    ) -> None:
        super().__init__(lam, ridge, history=True)
        for name, value in (("threshold", threshold), ("ridge", ridge), ("refresh", refresh), ("limit", limit)):
            if value is not None and not value > 0:
                raise EditError(f"BetaEdit's {name} is {value:g}; it must be positive")
        self.threshold, self.refresh, self.limit = threshold, refresh, limit
        self.refreshed = nn.ModuleDict()
        self._closed: dict[int, Tensor] = {}

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        super().allocate(layer, d_out, d_in)
        self.refreshed[str(layer)] = Refreshed(d_in)

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; finds the protected directions of the second moment."""
        values, vectors = required(moment, "BetaEdit", layer, weight.shape[1]).eigen()
        values, vectors = values.to(weight.device), vectors.to(weight.device)
        self._start[layer] = SpectralInverse(values, vectors, self.lam, self.ridge)
        self._closed[layer] = vectors[:, values >= self.threshold]
        if self._closed[layer].shape[1] == len(values):
            raise EditError(
                f"BetaEdit's threshold of {self.threshold:g} protects all {len(values)} input directions of layer {layer}, "
                "so that no edit could be written; use a larger threshold"
            )

    def forbidden(self, layer: int) -> Tensor:
        """See :meth:`LeastSquaresEditor.forbidden`."""
        state = self._state(layer)
        return state.closed if int(state.refreshes) else self._closed[layer]

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`LocateThenEdit.solve`.

        Raises:
            EditError: if no direction is left.
            Rejected: if the change is over ``limit``.
        """
        if self.forbidden(layer).shape[1] >= keys.shape[1]:
            raise EditError(
                f"all {keys.shape[1]} input directions of layer {layer} are protected, so BetaEdit has no room left"
            )
        delta = super().solve(layer, keys, residuals, weight, avoid)
        size = float(delta.norm()) / len(keys) ** 0.5
        if self.limit is not None and size > self.limit:
            raise Rejected(
                f"the change of layer {layer} is {size:.3g} per root of its edits, over BetaEdit's limit of {self.limit:g}"
            )
        return delta

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`LocateThenEdit.remember`; renews the projector when it is due."""
        super().remember(layer, keys, weight)
        state = self._state(layer)
        state.edits = state.edits + len(keys)
        if int(state.edits) // self.refresh > int(state.refreshes):
            state.refreshes = state.edits // self.refresh
            state.closed = self._renewed(layer, int(state.edits)).to(state.closed)

    def _renewed(self, layer: int, edits: int) -> Tensor:
        """Eigenvectors of the mixed second moment that reach the threshold, ``[d_in, r]``."""
        history, width = self.remembered(layer), self._closed[layer].shape[0]
        columns = history.keys.double().T
        earlier = columns @ columns.T
        if history.folded.numel():
            earlier = earlier + history.folded
        usual = self._start[layer].matrix(width) - self.ridge * torch.eye(width).to(earlier)  # lam C
        values, vectors = torch.linalg.eigh((earlier / edits + usual) / (1 + self.lam))
        reached: Tensor = vectors[:, values >= self.threshold]
        return reached

    def _state(self, layer: int) -> Refreshed:
        state = self.refreshed[str(layer)]
        assert isinstance(state, Refreshed)
        return state


class Refreshed(Growing):
    """The projector of one layer since its last refresh.

    Args:
        d_in: columns of the weight.
    """

    closed: Tensor  # [I, R] float64
    edits: Tensor  # [] int64, edits so far
    refreshes: Tensor  # [] int64, those due so far; at 0 the projector is that of the second moment

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("closed", torch.zeros(d_in, 0, dtype=torch.float64))
        self.register_buffer("edits", torch.zeros((), dtype=torch.int64))
        self.register_buffer("refreshes", torch.zeros((), dtype=torch.int64))
