"""L2SP: what was written fades towards the original weight, so that the weights stay bounded on a stream without end."""

from __future__ import annotations

import math

from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard
from lit_edit.spectrum import Spectrum


class L2SP(Guard):
    r"""Weight decay towards the original weight with every change.

    .. math:: \Delta' = \Delta - (1 - \rho)\,(W - W_0)
        \quad\Longrightarrow\quad W_t - W_0 = \sum_s \rho^{\,t-s}\, \Delta_s

    with ``W`` ``[d_out, d_in]`` the weight before this change and :math:`W_0` the original one. A change counts half after
    :math:`\ln 2 / -\ln \rho` further ones (13.5 for the default), and the size of all of them together stays bounded however
    long the stream is: the weights stay in reach of new edits, and old ones fade, the oldest first. Where every edit has to
    last, and the stream is short enough for that, this is the wrong guard.

    It is a gradient step on :math:`\frac{1 - \rho}{2} \|W - W_0\|_F^2`, the L2-SP penalty of transfer learning (Li, Grandvalet
    and Davoine, arXiv 1802.01483); as a guard of closed-form edits it is the project's own. The fading changes what a layer
    says by :math:`-(1 - \rho)(W - W_0)\,k`, which the next layer of the same batch sees and makes up for, and the last one does
    not.

    From the second batch on a change is dense: a journal that keeps factors takes ``4 d_out d_in`` bytes a layer and batch
    (``--journal.factors false`` keeps none). An editor that changes a layer several times in a batch fades it each time.

    Args:
        rho: share of what was written that is left after the next change, in (0, 1).

    Raises:
        EditError: if ``rho`` is outside (0, 1).
    """

    def __init__(self, rho: float = 0.95) -> None:
        super().__init__()
        if not 0 < rho < 1:
            raise EditError(f"L2SP's rho is {rho:g}; the share of what was written that is left must lie in (0, 1)")
        self.rho = rho
        self._original: dict[int, Tensor] = {}

    @property
    def half_life(self) -> float:
        """Changes after which one counts half."""
        return math.log(2) / -math.log(self.rho)

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """See :meth:`Guard.prepare`; keeps the original weight."""
        self._original[layer] = weight.detach()

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`; dense, except where nothing is written yet."""
        written = weight - self._original[layer].to(weight.device)
        if not written.any():
            return delta
        return Delta.from_dense(delta.dense() - (1 - self.rho) * written)

    def report(self, layer: int, before: Delta, after: Delta) -> dict[str, float]:
        """See :meth:`Guard.report`; ``faded`` is the norm of what faded, as a share of the change's own."""
        wanted = float(before.norm())
        if before is after or not wanted > 0:
            return {"faded": 0.0}
        return {"faded": float((after.dense() - before.dense()).norm()) / wanted}
