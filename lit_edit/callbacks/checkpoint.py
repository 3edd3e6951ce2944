"""Checkpoints between batches, two generations of them, and always one at the end of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.parallel.ranks import Ranks
from lit_edit.runs.checkpoint_folder import also_called
from lit_edit.runs.interrupts import Terminated

GENERATIONS = 2
"""Checkpoints that are kept where one would do: the newest may turn out to be damaged."""


class StreamCheckpoint(ModelCheckpoint):
    """Lightning's :class:`ModelCheckpoint`, at moments and in a way that no batch and no number is lost.

    A checkpoint is written when the next batch begins, not when the last one ends: by then all its numbers are logged and the
    validation that follows it is done, so that a run killed at any instant, resumed from any of its checkpoints, measures
    everything once. Rows still in memory are written before it. Another one follows the last batch of a run: the end of the
    stream, of ``max_steps`` or of ``max_time``.

    Every file is read back before it counts (:class:`~lit_edit.runs.checkpoint_io.SafetensorsCheckpointIO`). With
    ``save_top_k=1`` and no ``monitor`` the two newest stay, and ``last.ckpt`` is another name of the newest one; where it is a
    file of its own, the one before it stays as ``last-previous.ckpt``.
    """

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Begin without generations; a resumed run takes up those of its checkpoint right after this."""
        super().setup(trainer, pl_module, stage)
        self.generations: list[str] = []
        """Names of the checkpoints that are kept, the newest last."""
        self._failed = self._began = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """From here on there is something to save: a resume that was refused before must not replace what it was given."""
        super().on_train_start(trainer, pl_module)
        self._began = True

    # ------------------------------------------------------------------------------------------------ when

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Save between two batches, where one is due."""
        _settle(pl_module)
        step, every, pause = trainer.global_step, self._every_n_train_steps, self._train_time_interval
        now, before = time.monotonic(), self._last_time_checked
        late = pause is not None and before is not None and now - before >= pause.total_seconds()
        if pause is not None:
            late = trainer.strategy.broadcast(late)  # clocks differ, and all ranks save or none
        if late:
            self._last_time_checked = now
        if step and (late or (every >= 1 and step % every == 0)):
            self._save(trainer)

    def on_train_batch_end(self, *args: Any) -> None:
        """Nothing: the numbers of the batch are not logged yet."""

    def on_validation_end(self, *args: Any) -> None:
        """Nothing: the next batch or the end of the run follows at once."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save at the end of the run."""
        _settle(pl_module)
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save what stands, unless an error left it half done: then the latest checkpoint is what counts."""
        if trainer.state.fn != "fit":
            return
        getattr(pl_module, "ranks", Ranks()).leave()  # the others may be anywhere; what the first rank holds is whole by itself
        if not trainer.is_global_zero:
            return
        if self._should_save_on_exception(trainer) and self._began and not self._failed and trainer.global_step:
            counted = trainer.fit_loop.epoch_loop.batch_progress.current
            if not _settled(pl_module) and pl_module.batches == counted.completed < counted.ready:
                _settle(pl_module)  # the next batch has begun, and an earlier callback than this one failed
            if getattr(pl_module, "whole", True) and (_settled(pl_module) or trainer.validating):
                self._save(trainer)
            else:
                rank_zero_info("The error came before the batch in flight was logged: a resumed run does it again")
        if isinstance(exception, Terminated):
            found = "go on with" if self._last_checkpoint_saved else "no checkpoint was due yet; begin again with"
            rank_zero_info(
                f"Signal {exception.number} ended the run after {trainer.global_step} batches; {found}: "
                f"--run_dir {trainer.default_root_dir} --ckpt_path last"
            )

    # ------------------------------------------------------------------------------------------------ how

    def _save(self, trainer: L.Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        try:
            for logger in trainer.loggers:
                _write_rows(logger)
            if self.monitor is None or self.monitor in candidates:
                self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        except BaseException as error:
            self._failed = isinstance(error, EditError | OSError)
            raise

    def _save_none_monitor_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.save_top_k != 1:
            super()._save_none_monitor_checkpoint(trainer, monitor_candidates)
            return
        path = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer, self.best_model_path)
        name = Path(path).name
        # Noted before it is written: the checkpoint holds the list.
        self.generations = [*(other for other in self.generations if other != name), name]
        self.best_model_path = path
        self._save_checkpoint(trainer, path)
        while len(self.generations) > GENERATIONS:
            old = str(Path(path).with_name(self.generations.pop(0)))
            if self._should_remove_checkpoint(trainer, old, path):
                self._remove_checkpoint(trainer, old)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not self.save_last or self.save_last == "link":
            super()._save_last_checkpoint(trainer, monitor_candidates)
            return
        last = Path(self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST))
        saved = Path(self._last_checkpoint_saved)
        if (
            self._last_global_step_saved == trainer.global_step
            and trainer.strategy.broadcast(saved.is_file())
            and saved != last
        ):
            self.last_model_path = str(last)
            if trainer.strategy.broadcast(trainer.is_global_zero and also_called(saved, last)):
                return
        if trainer.is_global_zero and last.is_file():
            also_called(last, last.with_name(f"{last.stem}-previous{last.suffix}"))
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the generations that are kept."""
        return {**super().state_dict(), "generations": list(self.generations)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the generations that are there."""
        super().load_state_dict(state_dict)
        folder = Path(self.dirpath or ".")
        self.generations = [name for name in state_dict.get("generations", []) if (folder / name).is_file()]


def _settled(pl_module: Any) -> bool:
    return bool(getattr(pl_module, "settled", 0) == getattr(pl_module, "batches", 0))


def _settle(pl_module: Any) -> None:
    if hasattr(pl_module, "settle"):
        pl_module.settle()


def _write_rows(logger: Logger) -> None:
    """Write what a logger still holds in memory."""
    logger.save()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()
