"""RLSEdit: editing as recursive least squares."""

from __future__ import annotations

from lit_edit.editors.preserving import PreservingEditor


class RLSEdit(PreservingEditor):
    r"""Recursive least squares over all edits, anchored at the original weight and at what the layer usually reads.

    .. math::
        W_t = W_{t-1} + R_t K_t^T A_t^{-1}, \qquad A_t = A_{t-1} + K_t K_t^T, \qquad A_0 = \lambda^2 I + \mu^2 w\,C

    with keys ``K_t`` ``[d_in, n]``, residuals :math:`R_t = V_t - W_{t-1} K_t` ``[d_out, n]`` and second moment ``C``. The paper
    carries :math:`A_t^{-1}` itself and downdates it by the Woodbury identity; here the keys are carried, see
    :class:`lit_edit.algebra.history.KeyHistory`, which is the same in exact arithmetic and does not collect rounding. With
    fixed keys and targets, batches give exactly the one-shot solution on all of them. It is MEMIT with history and a ridge, and
    so ENCORE without its early stop.

    Source: arXiv 2601.15686. The released code is not this formula: it starts every batch from :math:`A_0`, and takes the
    residual for the target, from which it subtracts the current output once more. Neither is reproduced.

    Args:
        lam: :math:`\mu^2 w`, weight of the second moment (mu = 1; w = 15,000 for GPT-J and Llama-3-8B, 20,000 for GPT-2-XL).
        ridge: :math:`\lambda^2`, weight of the distance to the original weight (0 in the authors' settings).

    Raises:
        EditError: if ``lam`` is not positive or ``ridge`` is negative.
    """

    def __init__(self, lam: float = 15000.0, ridge: float = 0.0) -> None:
        super().__init__(lam, ridge, history=True)
