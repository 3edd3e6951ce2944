"""Callbacks that do to one rank what must not go unnoticed."""

from __future__ import annotations

import errno
import os

from lightning.pytorch.callbacks import Callback


class Nudge(Callback):
    """A weight of the second rank is no longer the others', as after a bit that flipped in its memory."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            pl_module.master(1).data[3, 4] += 1e-6


class OtherFacts(Callback):
    """The second rank has another edit set."""

    def setup(self, trainer, pl_module, stage):
        if stage == "fit" and trainer.global_rank == 1:
            trainer.datamodule.requests = trainer.datamodule.requests[::-1]


class Stop(Callback):
    """The second rank stops without ending, as on a machine that hangs."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            import time

            time.sleep(30)


class FullDisk(Callback):
    """From the second batch on, the first rank's disk is full."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 0:

            def full(handle):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            os.fsync = full


class OutOfMemory(Callback):
    """The last rank has no memory left for its share of the second batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == trainer.world_size - 1:
            import lit_edit.workbench

            def full(*args, **kwargs):
                raise MemoryError("the device is full")

            lit_edit.workbench.optimise = full


class Halves(Callback):
    """Fails where a rank of two holds more than half of the edited weight."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        held = pl_module.anatomy.down(1).weight
        if held.to_local().numel() * 2 != held.numel():
            raise AssertionError(f"{held.to_local().shape} of {held.shape}")
