"""Editors whose metric is made of second moments, a ridge and earlier keys."""

from __future__ import annotations

from torch import Tensor, nn

from lit_edit.editors.locate import LeastSquaresEditor, required
from lit_edit.errors import EditError
from lit_edit.history import KeyHistory
from lit_edit.moments import SecondMoment
from lit_edit.solver import Inverse, SpectralInverse


class PreservingEditor(LeastSquaresEditor):
    r"""Least squares in the metric :math:`A = \lambda C + \nu I + H H^T`.

    ``C`` is the mean uncentred second moment of the layer's inputs ``[d_in, d_in]``, ``H`` the keys of all earlier batches
    (empty without ``history``). One symmetric eigendecomposition of ``C`` per layer serves every ``lam`` and ``ridge``.

    With history, batches with fixed keys and targets give exactly the one-shot solution on all of them.

    Args:
        lam: weight of the second moment.
        ridge: ``nu``.
        history: keep the keys of earlier batches in the metric.

    Raises:
        EditError: if ``lam`` is not positive or ``ridge`` is negative.
    """

    def __init__(self, lam: float, ridge: float = 0.0, history: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        if not lam > 0:
            raise EditError(f"{name}'s lam is {lam:g}; the weight of the second moments must be positive")
        if not ridge >= 0:
            raise EditError(f"{name}'s ridge is {ridge:g}; it must not be negative")
        self.lam, self.ridge, self.history = lam, ridge, history
        self.earlier = nn.ModuleDict()
        self._start: dict[int, SpectralInverse] = {}

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        if self.history:
            self.earlier[str(layer)] = KeyHistory(d_in)

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; factors the second moment once."""
        values, vectors = required(moment, type(self).__name__, layer, weight.shape[1]).eigen()
        self._start[layer] = SpectralInverse(values.to(weight.device), vectors.to(weight.device), self.lam, self.ridge)

    def metric(self, layer: int) -> Inverse:
        """See :meth:`LeastSquaresEditor.metric`."""
        return self.remembered(layer).inverse(self._start[layer]) if self.history else self._start[layer]

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`LocateThenEdit.remember`."""
        if self.history:
            self.remembered(layer).append(keys)

    def remembered(self, layer: int) -> KeyHistory:
        """Keys of earlier batches of a layer."""
        history = self.earlier[str(layer)]
        assert isinstance(history, KeyHistory)
        return history
