"""Scores each batch right after it was written."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.metrics import EditScores


class ImmediateScores(Callback):
    """Protocol ``immediate``: the edits of a batch on the weights right after that batch.

    Logged with every step as ``edit/immediate/...``; the mean over the whole stream is kept in :attr:`stream`.
    """

    def __init__(self) -> None:
        self.stream = EditScores("immediate")
        self.last: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Every fit is a stream of its own; a resumed one takes up its sums right after this."""
        if stage == "fit":
            self.stream = EditScores("immediate")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Score the batch; it may have been rejected, then it counts as it is."""
        scores = EditScores("immediate")
        with pl_module.evaluated_model():
            records = pl_module.score(batch.requests)
        for target in (scores, self.stream):
            target.update(records)
        self.last = {name: float(value) for name, value in scores.compute().items()}
        pl_module.log_dict(self.last, batch_size=len(batch))

    def state_dict(self) -> dict[str, Any]:
        """Sums of the stream so far, so that a resumed run reports all of it."""
        return self.stream.sums()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the sums."""
        self.stream.take_up(state_dict)
