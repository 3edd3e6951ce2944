"""Editors that may keep the keys of earlier batches in their metric."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from lit_edit.algebra.history import KeyHistory
from lit_edit.algebra.inverses import Inverse, Metric
from lit_edit.editors.locate import LeastSquaresEditor


class RememberingEditor(LeastSquaresEditor):
    r"""Least squares in the metric :math:`A = A_0 + H H^T`, ``H`` the keys of all earlier batches (empty without ``history``).

    Args:
        history: keep the keys of earlier batches in the metric.
    """

    def __init__(self, history: bool) -> None:
        super().__init__()
        self.history = history
        self.earlier = nn.ModuleDict()

    @abstractmethod
    def start(self, layer: int) -> Metric:
        r""":math:`A_0` of a layer; the same object every time."""

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        if self.history:
            self.earlier[str(layer)] = KeyHistory(d_in)

    def metric(self, layer: int) -> Inverse:
        """See :meth:`LeastSquaresEditor.metric`."""
        return self.remembered(layer).inverse(self.start(layer)) if self.history else self.start(layer)

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`LocateThenEdit.remember`."""
        if self.history:
            self.remembered(layer).append(keys)

    def remembered(self, layer: int) -> KeyHistory:
        """Keys of earlier batches of a layer."""
        history = self.earlier[str(layer)]
        assert isinstance(history, KeyHistory)
        return history
