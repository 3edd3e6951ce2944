"""Writes down what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Predictions(Callback):
    """Keeps the answers of ``predict`` as ``predictions.jsonl`` in the run folder, one line per request.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder, "predictions.jsonl")

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin an empty file."""
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the answers of a batch."""
        if not trainer.is_global_zero:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say where they are."""
        if trainer.is_global_zero:
            print(f"The answers are in {self.path}")
