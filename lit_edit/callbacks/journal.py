"""Gives the module its journal and writes down the rows that were set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.journal import Journal


class JournalKeeper(Callback):
    """Keeps ``journal.jsonl`` (one record per batch) and ``set_aside.jsonl`` in the run folder.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Open the journal before a checkpoint is loaded, so that a resumed run can cut it back."""
        if stage != "fit":
            return
        pl_module.journal = Journal(self.folder / "journal.jsonl")
        stream = getattr(trainer, "datamodule", None)
        if stream is not None and hasattr(stream, "write_set_aside"):
            stream.write_set_aside(self.folder)
