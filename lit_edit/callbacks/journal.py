"""Gives the module its journal and writes down the rows that were set aside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.errors import EditError
from lit_edit.journal import Journal
from lit_edit.strategies import ranks_of


class JournalKeeper(Callback):
    """Keeps ``journal.jsonl`` (one record per batch), ``journal/`` and ``set_aside.jsonl`` in the run folder.

    Args:
        folder: the run folder.
        factors: whether to keep what every batch changed, so that the run can be replayed; see docs/journal.md for the size.
        without: ids of requests that the stream goes without, as if its edit set had never held them.

    Raises:
        EditError: if the stream has no request of such an id.
    """

    def __init__(self, folder: str, factors: bool = True, without: Sequence[str] = ()) -> None:
        self.folder, self.factors, self.without = Path(folder), factors, frozenset(without)
        self._left: Any = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Open the journal before a checkpoint is loaded, so that a resumed run can cut it back."""
        stream: Any = getattr(trainer, "datamodule", None)
        if self.without and stream is not None and stream.requests is not self._left:
            known = {request.case_id for request in stream.requests}
            if strange := sorted(self.without - known):
                raise EditError(f"--journal.without names {strange[0]!r}, but the stream holds no request of that id")
            self._left = tuple(request for request in stream.requests if request.case_id not in self.without)
            stream.requests = self._left
        if stage != "fit":
            return
        with ranks_of(trainer).together():
            pl_module.journal = Journal(self.folder / "journal.jsonl", self.factors) if trainer.is_global_zero else None
            if stream is not None and hasattr(stream, "write_set_aside"):
                stream.write_set_aside(self.folder)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The batch is applied, recorded and counted: a waiting Ctrl-C may end the run, before slow callbacks look."""
        pl_module.batch_was_counted()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Whatever ended the run, Ctrl-C works as before."""
        with suppress(KeyboardInterrupt):
            pl_module.batch_was_counted()
