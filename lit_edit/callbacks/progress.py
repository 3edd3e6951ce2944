"""Nested progress bars: the stream, and what the present batch is busy with."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class EditProgressBar(TQDMProgressBar):
    """Lightning's bar over batches with a second bar below it for the work inside a step.

    The lower bar shows second moments (tokens), spectra (layers), targets (forward passes) and the walk over the layers,
    whichever is under way.

    Args:
        refresh_rate: batches between two refreshes; 0 hides everything.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._inner: Tqdm | None = None
        self._phase = ""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Listen to the module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            pl_module.listen(self._on_phase)

    def init_train_tqdm(self) -> Tqdm:
        """The outer bar counts batches of the stream."""
        bar = super().init_train_tqdm()
        bar.set_description("Editing")
        return bar

    def get_metrics(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        """Edits so far; a version number says nothing here."""
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        edits = found.get("edits")
        return {**found, "edits": int(edits)} if isinstance(edits, float) else found

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """One epoch is one stream; its number is not shown."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("Editing")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Say what is being scored instead of a loader's number."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        probes = getattr(getattr(trainer, "datamodule", None), "probes", [])
        what = "scoring edits" if dataloader_idx == 0 else f"probing {probes[dataloader_idx - 1].name}"
        self.val_progress_bar.set_description(f"  {what}")

    def _on_phase(self, phase: str, done: int, total: int) -> None:
        if self.is_disabled:
            return
        if self._inner is None or phase != self._phase:
            self._close()
            self._phase = phase
            self._inner = Tqdm(desc=f"  {phase}", total=total, position=2, leave=False, dynamic_ncols=True)
        self._inner.total = total
        self._inner.n = min(done, total)
        self._inner.refresh()
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def on_train_batch_end(self, *args: Any) -> None:
        """Leave no inner bar behind: a target optimisation may have stopped early."""
        self._close()
        super().on_train_batch_end(*args)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Close whatever is open, also after an interrupt."""
        self._close()
        pl_module.unlisten(self._on_phase)
        super().teardown(trainer, pl_module, stage)
