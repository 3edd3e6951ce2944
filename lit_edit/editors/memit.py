"""MEMIT: mass-editing memory in a transformer."""

from __future__ import annotations

from torch import Tensor, nn

from lit_edit.editors.base import KeyHistory, LeastSquaresEditor
from lit_edit.errors import EditError
from lit_edit.moments import SecondMoment
from lit_edit.solver import Inverse, SpectralInverse, WithHistory


class MEMIT(LeastSquaresEditor):
    r"""Least squares between new facts and the second moment of everything the layer usually reads.

    .. math:: \Delta = R K^T (\lambda C + H H^T + K K^T)^{-1}

    with keys ``K`` ``[d_in, n]`` and residuals ``R`` ``[d_out, n]`` of the batch, ``C`` the mean uncentred second moment of
    the layer's inputs ``[d_in, d_in]`` and ``H`` the keys of all earlier batches (``history=True``; empty otherwise).

    Without history nothing protects earlier edits. With it, batches with fixed keys and targets give exactly the one-shot
    solution on all of them. The published sequential variant (MEMIT_seq in the AlphaEdit code) keeps ``H H^T`` as a float32
    matrix; here the keys themselves are kept, so the sum is exact.

    Source: Meng et al. 2022, arXiv 2210.07229, eq. 14; the released code solves in float64, and so does this.

    Args:
        lam: weight of the second moment (``mom2_update_weight``; 15,000 for GPT-J and Llama-3-8B, 20,000 for GPT-2-XL).
        history: keep the keys of earlier batches in the metric.

    Raises:
        EditError: if ``lam`` is not positive.
    """

    def __init__(self, lam: float = 15000.0, history: bool = False) -> None:
        super().__init__()
        if not lam > 0:
            raise EditError(f"MEMIT's lam is {lam:g}; the weight of the second moments must be positive")
        self.lam = lam
        self.history = history
        self.earlier = nn.ModuleDict()
        self._inverse: dict[int, SpectralInverse] = {}

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        if self.history:
            self.earlier[str(layer)] = KeyHistory(d_in)

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; factors the second moment once."""
        if moment is None:
            raise EditError(f"MEMIT needs the second moment of the keys of layer {layer}, and none was given")
        values, vectors = moment.eigen()
        self._inverse[layer] = SpectralInverse(values.to(weight.device), vectors.to(weight.device), self.lam)

    def metric(self, layer: int) -> Inverse:
        """See :meth:`LeastSquaresEditor.metric`."""
        base = self._inverse[layer]
        if not self.history:
            return base
        remembered = self._history(layer)
        if len(remembered) == 0:
            return base
        return WithHistory(base, remembered.keys.T)

    def remember(self, layer: int, keys: Tensor) -> None:
        """See :meth:`Editor.remember`."""
        if self.history:
            self._history(layer).append(keys)

    def _history(self, layer: int) -> KeyHistory:
        history = self.earlier[str(layer)]
        assert isinstance(history, KeyHistory)
        return history
