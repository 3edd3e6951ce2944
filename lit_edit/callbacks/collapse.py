"""Ends a run whose model has broken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.model_checkpoint import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_edit.errors import EditError


class CollapseGuard(Callback):
    """Ends the fit after ``patience`` validations in a row in which a number is past its threshold, and leaves a checkpoint.

    It judges every validation of a fit that measured the number; NaN counts as past every threshold. The checkpoint
    (``last.ckpt``) is that of the weights judged, and one sentence says what happened, after how many edits, and how to go on.
    The two actions differ in what the run counts as afterwards:

    - ``stop``: the stream has come to its end here. What the model has become is scored like any finished run. A run that is
      resumed all the same keeps the count: the first bad validation stops it again.
    - ``pause``: the stream waits for someone to look. :attr:`paused` tells the command line to leave the scoring of all edits
      to the run that goes on, and a resumed run has its full ``patience`` again.

    Args:
        monitor: full name of a number of the validations, e.g. ``probe/sentiment/accuracy/teacher_forced`` or
            ``edit/so_far/efficacy/accuracy/teacher_forced``.
        below: the model has collapsed when the number is less than this.
        above: ... or more than this (a perplexity, say).
        action: see above.
        patience: bad validations in a row that end the run.

    Raises:
        EditError: if neither threshold is given, they contradict each other, or ``patience`` is not positive; at the first
            validation, if there is no such number.
    """

    def __init__(
        self,
        monitor: str,
        below: float | None = None,
        above: float | None = None,
        action: Literal["stop", "pause"] = "stop",
        patience: int = 1,
    ) -> None:
        if below is None and above is None:
            raise EditError("CollapseGuard has no threshold; give below (an accuracy, say) or above (a perplexity)")
        for name, value in (("below", below), ("above", above)):
            if value is not None and math.isnan(value):
                raise EditError(f"CollapseGuard's {name} is {value}; it must be a number")
        if below is not None and above is not None and below > above:
            raise EditError(
                f"CollapseGuard's below is {below:g} and above is {above:g}, so that every number counts as a collapse"
            )
        if action not in ("stop", "pause"):
            raise EditError(f"CollapseGuard's action is {action!r}; it is 'stop' or 'pause'")
        if patience < 1:
            raise EditError(f"CollapseGuard's patience is {patience}; it must be at least 1 validation")
        self.monitor, self.below, self.above, self.action, self.patience = monitor, below, above, action, patience
        self.bad = 0
        """Bad validations in a row."""
        self.said = ""
        """The sentence, once the run was ended."""
        self._ending = False

    @property
    def state_key(self) -> str:
        """Several guards may watch several numbers."""
        return f"{type(self).__name__}{{'monitor': {self.monitor!r}}}"

    @property
    def paused(self) -> bool:
        """Whether this fit was ended to go on later."""
        return self._ending and self.action == "pause"

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Every fit begins anew; a resumed one takes up its count right after this."""
        if stage == "fit":
            self.bad, self.said, self._ending = 0, "", False

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Judge the number of this validation."""
        if trainer.sanity_checking or trainer.state.fn not in ("fit", "validate"):
            return
        value = self._measured(trainer, pl_module)
        if value is None or trainer.state.fn != "fit" or self._ending:
            return
        past = self._past(value)
        self.bad = self.bad + 1 if past else 0
        if self.bad < self.patience:
            return
        self._ending = trainer.should_stop = True
        often = f" in {self.bad} validations in a row" if self.bad > 1 else ""
        self.said = f"{self.monitor} is {value:.4g}{past}{often}"

    def _past(self, value: float) -> str:
        """How a number is past its threshold, empty if it is not."""
        if math.isnan(value):
            return ", which is no number"
        if self.below is not None and value < self.below:
            return f", below {self.below:g}"
        if self.above is not None and value > self.above:
            return f", above {self.above:g}"
        return ""

    def _measured(self, trainer: L.Trainer, pl_module: Any) -> float | None:
        """The number as this validation found it, ``None`` if it could not.

        Raises:
            EditError: if no validation of this run finds it.
        """
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        family, which, *_ = [*self.monitor.split("/"), ""]
        protocol = pl_module.scores.protocol
        if family == "edit" and which in ("before", "so_far", "final") and which != protocol:
            return None  # what stands there, if anything, is an earlier validation's
        rows = pl_module.probe_rows
        if family == "probe" and which in rows and not rows[which]:
            return None  # none of its items was reached (limit_val_batches)
        if self.monitor in found:
            return found[self.monitor]
        there = sorted(name for name in found if name.startswith(("probe/", f"edit/{protocol}/")))
        if not there:
            return None  # an empty validation says nothing about any number
        if family != "probe" and (protocol == "before" or trainer.state.fn != "fit"):
            return None  # what only a fit logs
        raise EditError(f"CollapseGuard's monitor {self.monitor!r} is not measured by this run; there is {', '.join(there)}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Leave the checkpoint, now that every callback has seen the validation, and say so."""
        if not self._ending:
            return
        if self.action == "pause":
            self.bad = 0
        path = self._checkpoint(trainer)
        trainer.save_checkpoint(path)
        resume = f"--run_dir {trainer.default_root_dir} --ckpt_path last"
        if self.action == "pause":
            what, how = "paused", f"go on with: {resume}"
        else:
            what, how = "stopped", f"to go on all the same, move the threshold or leave the guard out, and add: {resume}"
        self.said = f"CollapseGuard {what} the run after {pl_module.edits} edits: {self.said}; the checkpoint is {path}; {how}"
        rank_zero_info(self.said)

    @staticmethod
    def _checkpoint(trainer: L.Trainer) -> Path:
        """Where ``last.ckpt`` is kept: by the run's own checkpoints, or in the run folder."""
        savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        for saver in savers:
            if saver.save_last and saver.last_model_path:
                return Path(saver.last_model_path)
        folder = next((saver.dirpath for saver in savers if saver.dirpath), Path(trainer.default_root_dir, "checkpoints"))
        return Path(folder, "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Bad validations in a row so far."""
        return {"bad": self.bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count."""
        self.bad = int(state_dict["bad"])
