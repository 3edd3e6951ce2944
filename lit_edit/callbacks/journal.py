"""Gives the module its journal and writes down the rows that were set aside."""

from __future__ import annotations

from contextlib import suppress
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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The batch is applied, recorded and counted: a waiting Ctrl-C may end the run, before slow callbacks look."""
        pl_module.batch_was_counted()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Whatever ended the run, Ctrl-C works as before."""
        with suppress(KeyboardInterrupt):
            pl_module.batch_was_counted()
