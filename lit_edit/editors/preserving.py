"""Editors whose metric is made of second moments, a ridge and earlier keys."""

from __future__ import annotations

from torch import Tensor

from lit_edit.algebra.inverses import Metric, moment_inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors.locate import required
from lit_edit.editors.remembering import RememberingEditor
from lit_edit.errors import EditError


class PreservingEditor(RememberingEditor):
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
        super().__init__(history)
        name = type(self).__name__
        if not lam > 0:
            raise EditError(f"{name}'s lam is {lam:g}; the weight of the second moments must be positive")
        if not ridge >= 0:
            raise EditError(f"{name}'s ridge is {ridge:g}; it must not be negative")
        self.lam, self.ridge = lam, ridge
        self._start: dict[int, Metric] = {}

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; factors the second moment once."""
        mean = required(moment, type(self).__name__, layer, weight.shape[1]).mean
        self._start[layer] = moment_inverse(mean.to(weight.device), self.lam, self.ridge)

    def start(self, layer: int) -> Metric:
        """See :meth:`RememberingEditor.start`."""
        return self._start[layer]
