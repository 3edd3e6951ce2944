"""Checkpoints during a stream, and always one at its end."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StreamCheckpoint(ModelCheckpoint):
    """Lightning's :class:`ModelCheckpoint`, which also saves after the last batch of a run.

    That is the end of the stream, of ``max_steps`` or of ``max_time``. Lightning saves every ``every_n_train_steps`` batches
    and nothing after the last multiple of it: of 23 batches with a checkpoint every ten, the last three would be lost.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save where Lightning does, and at the end."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ends = trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps
        # Here rather than when training ends: after max_steps Lightning counts the epoch as done, and nothing could resume.
        if ends and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
