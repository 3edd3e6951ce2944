"""How far editing has turned the edited weights away from the original ones."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_edit.errors import EditError
from lit_edit.spectrum import (
    Spectrum,
    decompose,
    energy_rank,
    protected_share,
    subspace_similarity,
    triple_drift,
    vector_similarity,
)

MEASURES = (
    "norm",
    "relative_norm",
    "delta_norm",
    "sigma_max",
    "condition_number",
    "ls",
    "ss",
    "triple_drift",
    "protected_share",
)
"""What :func:`drift` measures."""


@torch.no_grad()
def drift(original: Spectrum, original_weight: torch.Tensor, weight: torch.Tensor, tau: float) -> dict[str, float]:
    r"""Spectral measures of one edited weight ``[d_out, d_in]``; ``k`` is the rank that holds a share ``tau`` of sigma.

    Returns:
        ``norm`` and ``delta_norm`` (Frobenius), ``relative_norm`` :math:`\|W_t\|_F/\|W_0\|_F`, ``sigma_max``,
        ``condition_number``, ``ls`` and ``ss`` (mean of left and right, top ``k`` by order),
        ``triple_drift`` (0 while the dominant triples are intact, whatever their order), ``protected_share`` of the
        accumulated change that meets the dominant subspace.
    """
    rank = energy_rank(original.sigma, tau)
    now = decompose(weight)
    then, after = original.subspace(rank), now.subspace(rank)
    change = weight - original_weight
    values = (
        float(weight.norm()),
        float(weight.norm() / original_weight.norm()),
        float(change.norm()),
        float(now.sigma[0]),
        now.condition_number(),
        (subspace_similarity(then.left, after.left) + subspace_similarity(then.right, after.right)) / 2,
        (vector_similarity(then.left, after.left) + vector_similarity(then.right, after.right)) / 2,
        triple_drift(original, weight, rank),
        protected_share(change, then),
    )
    return dict(zip(MEASURES, values, strict=True))


class SpectralDrift(Callback):
    """Logs ``drift/<measure>/layer_<i>`` of every edited layer; see :func:`drift` for the measures.

    It reads weights after the batch and changes nothing. One symmetric eigenproblem of size d_out per layer and visit.

    Args:
        every_n_batches: visits; 0 turns it off.
        tau: share of the singular values that defines the dominant subspace looked at.

    Raises:
        EditError: if ``tau`` is outside (0, 1).
    """

    def __init__(self, every_n_batches: int = 1, tau: float = 0.1) -> None:
        if not 0 < tau < 1:
            raise EditError(f"SpectralDrift's tau is {tau:g}; the share of the singular values must lie in (0, 1)")
        if every_n_batches < 0:
            raise EditError(f"SpectralDrift's every_n_batches is {every_n_batches}; it must be 0 (off) or more")
        self.every_n_batches, self.tau = every_n_batches, tau
        self.last: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Ask for the original spectra even where no guard needs them."""
        if self.every_n_batches:
            pl_module.wants_spectra = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure and log, at this step only: a logged value must not be repeated on later steps."""
        last = trainer.is_last_batch
        if not self.every_n_batches or ((batch_idx + 1) % self.every_n_batches and not last):
            return
        found = {}
        for layer in pl_module.layers:
            measures = drift(pl_module.spectra[layer], pl_module.original(layer), pl_module.master(layer).detach(), self.tau)
            found.update({f"drift/{name}/layer_{layer}": value for name, value in measures.items()})
        self.last = found
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """The latest measures, so that a resumed run that has nothing left to do still reports them."""
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self.last = dict(state_dict["last"])
