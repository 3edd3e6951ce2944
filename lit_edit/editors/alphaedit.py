"""AlphaEdit: null-space constrained editing."""

from __future__ import annotations

from torch import Tensor

from lit_edit.algebra.inverses import Metric, Ridge
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors.locate import required
from lit_edit.editors.remembering import RememberingEditor
from lit_edit.errors import EditError


class AlphaEdit(RememberingEditor):
    r"""Write only into input directions that the layer hardly ever reads.

    .. math:: \Delta = R\,(PK)^T \bigl(P\,(K K^T + H H^T)\,P + \nu I\bigr)^{-1}, \qquad P = I - U U^T

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, keys of earlier batches ``H``, and ``U`` the eigenvectors of
    the second moment ``C`` whose eigenvalue reaches ``threshold``. The threshold is *absolute*, so it depends on the scale of
    the layer's inputs; :attr:`removed` says how many directions it takes. The projector is never formed: only ``U``
    ``[d_in, r]`` is kept.

    Source: Fang et al. 2024, arXiv 2410.02355; the released code solves the equivalent non-symmetric system in
    float32, this solves in float64.

    Args:
        threshold: eigenvalues of the mean second moment from here on are protected (``nullspace_threshold``).
        ridge: ``nu`` (``L2``; 10 in the authors' code, 1 in EasyEdit's Llama-3 and Qwen settings).
        history: keep the keys of earlier batches in the metric, as published.

    Raises:
        EditError: if a value is not positive, or the threshold leaves no direction to write into.
    """

    def __init__(self, threshold: float = 0.02, ridge: float = 10.0, history: bool = True) -> None:
        super().__init__(history)
        if not threshold > 0:
            raise EditError(
                f"{type(self).__name__}'s threshold is {threshold:g}; an eigenvalue to compare with must be positive"
            )
        if not ridge > 0:
            raise EditError(f"{type(self).__name__}'s ridge is {ridge:g}; it must be positive, or the solve is singular")
        self.threshold, self.ridge = threshold, ridge
        self._start = Ridge(ridge)
        self._closed: dict[int, Tensor] = {}

    @property
    def removed(self) -> dict[int, int]:
        """Number of protected input directions by layer."""
        return {layer: closed.shape[1] for layer, closed in self._closed.items()}

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; finds the protected directions."""
        name = type(self).__name__
        values, vectors = required(moment, name, layer, weight.shape[1]).eigen()
        protected = values >= self.threshold
        if bool(protected.all()):
            raise EditError(
                f"{name}'s threshold of {self.threshold:g} protects all {len(values)} input directions of layer {layer} "
                f"(their eigenvalues start at {float(values[0]):.3g}), so that no edit could be written; use a larger threshold"
            )
        self._closed[layer] = vectors[:, protected].to(weight.device)

    def forbidden(self, layer: int) -> Tensor:
        """See :meth:`LeastSquaresEditor.forbidden`."""
        return self._closed[layer]

    def start(self, layer: int) -> Metric:
        """See :meth:`RememberingEditor.start`; the projection is left to the solve, which keeps out of ``forbidden``."""
        return self._start
