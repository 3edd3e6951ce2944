"""Stops a run whose ranks have come apart."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.errors import EditError
from lit_edit.parallel.replicas import check_alike, digests


class ReplicaCheck(Callback):
    """Compares hashes of weights and state over all ranks every few batches and at the end of the stream.

    Every rank computes every solve and takes the first rank's result, so ranks that differ mean a broken device, a library that
    rounds in its own way, or a callback that changes weights on one rank only; the numbers of such a run would be nobody's.
    Hashing takes about a second for 2 GB, once every ``every_n_batches``. Nothing happens on one rank.

    Args:
        every_n_batches: batches between two comparisons; 0 turns them off.

    Raises:
        EditError: if it is negative; during the run, on all ranks, naming the rank that differs and in what.
    """

    def __init__(self, every_n_batches: int = 10) -> None:
        if every_n_batches < 0:
            raise EditError(f"ReplicaCheck's every_n_batches is {every_n_batches}; it must be 0 (off) or more")
        self.every_n_batches = every_n_batches

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before a batch, where a checkpoint may be due: it should not hold what nobody can trust."""
        if self.every_n_batches and pl_module.batches and pl_module.batches % self.every_n_batches == 0:
            self._compare(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Behind the last batch."""
        if self.every_n_batches and pl_module.batches:
            self._compare(pl_module)

    @staticmethod
    def _compare(pl_module: Any) -> None:
        if pl_module.ranks.size > 1:
            masters = {layer: pl_module.master(layer) for layer in pl_module.layers}
            shown = {layer: pl_module.anatomy.shown(layer) for layer in pl_module.layers}
            check_alike(pl_module.ranks, digests(masters, shown, [pl_module.editor, *pl_module.guard_list()]))
