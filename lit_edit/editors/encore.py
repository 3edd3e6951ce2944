"""ENCORE: norm-constrained sequential editing that stops optimising in time."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.editors.preserving import PreservingEditor
from lit_edit.errors import EditError
from lit_edit.prompts import EditRows
from lit_edit.targets import PredictedFor, Targets
from lit_edit.workbench import Workbench


class ENCORE(PreservingEditor):
    r"""MEMIT with history and a penalty on the size of the change; targets stop once the answer is predicted.

    .. math:: \Delta = R K^T (\lambda C + \lambda_n I + H H^T + K K^T)^{-1}

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, second moment ``C`` and earlier keys ``H``. The optimisation
    of a request's target stops at the ``patience``-th forward pass (not necessarily in a row) in which every context row
    predicts every target token ("most-probable early stopping").

    Source: Gupta et al. 2025, arXiv 2502.01636. The released code counts correct *tokens* over the context rows and asks for
    exactly as many as there are rows, which means what it should for one-token answers only; here all tokens of all context
    rows have to be right. For one-token answers the two agree.

    Args:
        lam: weight of the second moment (15,000 for Llama, 20,000 for GPT-2-XL).
        ridge: ``lambda_n`` (``update_norm_lambda``: 10 for GPT-2-XL and Llama-2, 20 for Llama-3).
        patience: correct forward passes before the optimisation stops (``-prob_cutoff``: 4 GPT-2-XL, 3 Llama-2, 2 Llama-3).
        history: keep the keys of earlier batches in the metric.

    Raises:
        EditError: if ``lam`` is not positive, ``ridge`` is negative, or ``patience`` is below 1.
    """

    def __init__(self, lam: float = 15000.0, ridge: float = 20.0, patience: int = 2, history: bool = True) -> None:
        super().__init__(lam, ridge, history)
        if patience < 1:
            raise EditError(f"ENCORE's patience is {patience}; it counts forward passes and must be at least 1")
        self.patience = patience

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`LocateThenEdit.targets`."""
        return bench.optimise(rows, stop=PredictedFor(self.patience))
