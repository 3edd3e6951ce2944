"""MEMIT: mass-editing memory in a transformer."""

from __future__ import annotations

from lit_edit.editors.preserving import PreservingEditor


class MEMIT(PreservingEditor):
    r"""Least squares between new facts and the second moment of everything the layer usually reads.

    .. math:: \Delta = R K^T (\lambda C + H H^T + K K^T)^{-1}

    with keys ``K`` ``[d_in, n]`` and residuals ``R`` ``[d_out, n]`` of the batch, ``C`` the mean uncentred second moment of
    the layer's inputs ``[d_in, d_in]`` and ``H`` the keys of all earlier batches (``history=True``; empty otherwise). Keys are
    half the bare prompt's and half the mean over the contexts.

    Without history nothing protects earlier edits. With it, batches with fixed keys and targets give exactly the one-shot
    solution on all of them. The published sequential variant (MEMIT_seq in the AlphaEdit code) keeps ``H H^T`` as a float32
    matrix, and as released never receives it; here the keys enter exactly, see :class:`lit_edit.algebra.history.KeyHistory`.

    Source: Meng et al. 2022, arXiv 2210.07229, eq. 14; the released code solves in float64, and so does this.

    Args:
        lam: weight of the second moment (``mom2_update_weight``; 15,000 for GPT-J and Llama-3-8B, 20,000 for GPT-2-XL).
        history: keep the keys of earlier batches in the metric.

    Raises:
        EditError: if ``lam`` is not positive.
    """

    def __init__(self, lam: float = 15000.0, history: bool = False) -> None:
        super().__init__(lam, history=history)
