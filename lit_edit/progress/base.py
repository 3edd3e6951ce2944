"""How far a run has come: what there is to tell, whoever tells it."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lit_edit.data.loader import ReviewLoader

_SCORED = {
    "efficacy": "edit/immediate/efficacy/accuracy/teacher_forced",
    "so far": "edit/so_far/efficacy/accuracy/teacher_forced",
}


class Progress(ProgressBar):
    """What all ways to tell a run's progress share: Lightning's hooks and the module's phases, as a few plain events.

    A stream is a number of batches. Within it, before it and after it are shorter pieces of work with a name: second moments
    (tokens), spectra (layers), targets (forward passes), the walk over the layers, scoring, probing. Of several ranks, the
    first one speaks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._module: Any = None
        self._scored = self._to_score = 0
        self.evaluating = False
        """Whether the work under way is an evaluation, and not a batch or what is prepared for the stream."""

    # ------------------------------------------------------------------------------------------------ for subclasses

    @abstractmethod
    def stream_begins(self, done: int, total: int) -> None:
        """So many of the stream's batches lie behind already, of so many in all."""

    @abstractmethod
    def stream_moves(self, done: int, total: int, edits: int, scores: dict[str, float]) -> None:
        """One batch more; ``edits`` are written so far, ``scores`` are the latest ones, accuracies by a short name."""

    @abstractmethod
    def stream_ends(self) -> None:
        """The stream is over, or was interrupted."""

    @abstractmethod
    def work(self, name: str, done: int, total: int) -> None:
        """A piece of work has come to ``done`` of ``total``, which is 0 where nobody knows."""

    @abstractmethod
    def work_ends(self) -> None:
        """Whatever piece of work is under way is over, also where it stopped early."""

    def scored(self, protocol: str, edits: int, scores: dict[str, float]) -> None:
        """A validation has found these after so many edits; see docs/protocols.md for the protocol."""

    # ------------------------------------------------------------------------------------------------ Lightning

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is."""
        return not self._enabled

    def disable(self) -> None:
        """Say nothing: Lightning asks for it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Listen to the module."""
        super().setup(trainer, pl_module, stage)
        if hasattr(pl_module, "listen"):
            self._module = pl_module
            pl_module.listen(self._on_phase)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Leave nothing open, also after an interrupt."""
        self._close()
        if self._module is not None:
            self._module.unlisten(self._on_phase)
            self._module = None

    def _close(self) -> None:
        if self.is_enabled:
            self.work_ends()
            self.stream_ends()

    def _on_phase(self, phase: str, done: int, total: int) -> None:
        if self.is_disabled:
            return
        self.work(phase, min(done, total), total)
        if done >= total:
            self.work_ends()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close what is open before the error is told."""
        self._close()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The stream begins; not told when its epoch does, which Lightning says nothing of where a run resumes."""
        if self.is_enabled:
            self.stream_begins(getattr(pl_module, "batches", 0), _batches(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One batch more."""
        if self.is_enabled:
            self.work_ends()  # a target optimisation may have stopped early
            known = trainer.callback_metrics
            scores = {name: float(known[tag]) for name, tag in _SCORED.items() if tag in known}
            self.stream_moves(batch_idx + 1, _batches(trainer), getattr(pl_module, "edits", 0), scores)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The stream is over."""
        if self.is_enabled:
            self.stream_ends()

    # ------------------------------------------------------------------------------------------------ evaluation

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Count what is to be scored, over all loaders."""
        limits = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._count(limits, trainer.val_dataloaders)

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """As for validation."""
        self._count(trainer.num_test_batches, trainer.test_dataloaders)

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """As for validation."""
        self._count(trainer.num_predict_batches, trainer.predict_dataloaders)

    def _count(self, limits: Any, loaders: Any) -> None:
        """How many batches there will be: a review loader has no length, but knows it at this moment."""
        limits = limits if isinstance(limits, list) else [limits]
        loaders = loaders if isinstance(loaders, list | tuple) else [loaders] * len(limits)
        counts = [
            min(limit, one.batches()) if isinstance(one, ReviewLoader) else limit
            for limit, one in zip(limits, loaders, strict=True)
        ]
        total = sum(counts)
        self.evaluating = True
        self._scored, self._to_score = 0, int(total) if math.isfinite(total) else 0

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Say what is being scored."""
        if self.is_enabled:
            self.work(_subject(trainer, dataloader_idx), self._scored, self._to_score)

    on_test_batch_start = on_validation_batch_start

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As for validation."""
        if self.is_enabled:
            self.work("answering", self._scored, self._to_score)

    def on_validation_batch_end(self, *_: Any) -> None:
        """One batch more."""
        self._scored += 1

    def on_test_batch_end(self, *_: Any) -> None:
        """As for validation."""
        self._scored += 1

    def on_predict_batch_end(self, *_: Any) -> None:
        """As for validation."""
        self._scored += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Tell what was found."""
        self._over()
        if self.is_enabled and not trainer.sanity_checking:
            protocol = getattr(getattr(pl_module, "scores", None), "protocol", "before")
            if found := _found(trainer, protocol):
                self.scored(protocol, getattr(pl_module, "edits", 0), found)

    def on_test_end(self, *_: Any) -> None:
        """Over."""
        self._over()

    def on_predict_end(self, *_: Any) -> None:
        """Over."""
        self._over()

    def _over(self) -> None:
        self.evaluating = False
        if self.is_enabled:
            self.work_ends()


def _batches(trainer: L.Trainer) -> int:
    """Batches of the stream that this run will see, 0 where nobody knows."""
    total = min(float(trainer.num_training_batches), trainer.max_steps if trainer.max_steps > 0 else math.inf)
    return int(total) if math.isfinite(total) else 0


def _probes(trainer: Any) -> list[Any]:
    return list(getattr(getattr(trainer, "datamodule", None), "probes", None) or [])


def _subject(trainer: Any, loader: int) -> str:
    """What a loader of an evaluation holds: edits, or a probe."""
    probes = _probes(trainer)
    return f"probing {probes[loader - 1].name.replace('_', ' ')}" if 0 < loader <= len(probes) else "scoring edits"


def _found(trainer: Any, protocol: str) -> dict[str, float]:
    """Main numbers of the latest validation, by short names."""
    wanted = {name: f"edit/{protocol}/{name}/accuracy/teacher_forced" for name in ("efficacy", "paraphrase", "neighbourhood")}
    wanted |= {one.name.replace("_", " "): f"probe/{one.name}/{getattr(one, 'shown', '')}" for one in _probes(trainer)}
    known = trainer.callback_metrics
    return {name: float(known[tag]) for name, tag in wanted.items() if tag in known}
