"""EMMET: equality-constrained mass model editing."""

from __future__ import annotations

from torch import Tensor

from lit_edit.editors.preserving import PreservingEditor
from lit_edit.errors import EditError


class EMMET(PreservingEditor):
    r"""The change that writes the new facts *exactly* at least cost to what the layer usually reads.

    .. math:: \Delta = R\,(K^T A^{-1} K + \mu I)^{-1} K^T A^{-1}, \qquad A = \lambda C + \nu I + H H^T

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, second moment ``C`` ``[d_in, d_in]``. For :math:`\mu = 0` it
    minimises :math:`\mathrm{tr}(\Delta A \Delta^T)` subject to :math:`\Delta K = R`; a batch needs :math:`\mu > 0` as soon as
    keys are nearly dependent, one edit does not. MEMIT is the same formula with :math:`\mu = 1`.

    Source: Gupta et al. 2024, arXiv 2403.14236; the released code adds ``mu`` (``emmet_lambda``) to a batch only, and
    so does this. It falls back on a pseudo-inverse for dependent keys; here they are refused, since the batch then asks one key
    for several values. ``history`` is the variant of the ENCORE code (``add_prev_edits``). Usually one layer is edited.

    Args:
        lam: weight of the second moment (``mom2_update_weight``; 1,000 for GPT-2-XL, 1 for GPT-J and Llama-2 in the authors'
            code, 10,000 and 100,000 in ENCORE's).
        mu: softens the constraint in a batch of more than one edit (``emmet_lambda``).
        ridge: ``nu`` (``update_norm_lambda``).
        history: keep the keys of earlier batches in the metric.

    Raises:
        EditError: if ``lam`` is not positive, or ``mu`` or ``ridge`` is negative.
    """

    def __init__(self, lam: float = 1000.0, mu: float = 0.1, ridge: float = 0.0, history: bool = False) -> None:
        super().__init__(lam, ridge, history)
        if not mu >= 0:
            raise EditError(f"EMMET's mu is {mu:g}; it must not be negative")
        self.mu = mu

    def weighting(self, keys: Tensor) -> float:
        """See :meth:`LeastSquaresEditor.weighting`: none for a single edit."""
        return self.mu if len(keys) > 1 else 0.0
