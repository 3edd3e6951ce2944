"""What a run that is taken up again has to know: its checkpoints, its journal, and whether it is still the same run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_edit.batch.finite import sound
from lit_edit.data.loader import fingerprint
from lit_edit.edited import EditedModel
from lit_edit.errors import EditError
from lit_edit.journal import Journal
from lit_edit.models.identity import changes, check_identity
from lit_edit.parallel.replicas import check_alike
from lit_edit.runs.boundary import random_state, set_random_state, settle_loops

_RESUME = "go on from the latest checkpoint with --ckpt_path last"


class ResumableModel(EditedModel):
    """The half of the continual editor that stands between two batches: counters, checkpoints, journal."""

    strict_loading = False  # a checkpoint holds the edited masters only; on_load_checkpoint checks what must be there

    def __init__(self) -> None:
        super().__init__()
        self.edits = 0
        """Requests that were written."""
        self.batches = 0
        """Batches that lie behind: as many as the journal holds."""
        self.journal: Journal | None = None
        self.starts_over = False
        """Whether a journal that is there belongs to an attempt that left no checkpoint, and begins anew."""
        self.settings: dict[str, Any] = {}
        """Options of the run by name; a run that resumes tells which of them have changed."""
        self.settled = 0
        """Batches of which every number is logged, the validation that followed the last one included."""
        self.whole = True
        """Whether the last batch is applied altogether or not at all."""
        self._random: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------------ between batches

    def weights(self) -> dict[int, Tensor]:
        """The masters by layer, ``[d_out, d_in]`` float32."""
        return {layer: self.master(layer).detach() for layer in self.layers}

    def settle(self) -> None:
        """Every number of the batches so far is logged: a checkpoint written from here on has nothing to make up for."""
        self.settled, self._random = self.batches, random_state()

    def check_sound(self, state: bool = True) -> None:
        """Make sure that the masters, and the state of editor and guards, hold numbers.

        Raises:
            EditError: if one of them is not finite. They were when they were written: a callback, a schedule or the machine
                has spoilt them, and every batch from here on would be rejected.
        """
        try:
            sound(((f"the edited weight of layer {layer}", self.master(layer)) for layer in self.layers), _RESUME)
            for part in (self.editor, *self.guard_list()) if state else ():
                kept = f"the state of {type(part).__name__}"
                sound(((f"{kept} ({name})", value) for name, value in part.named_buffers()), _RESUME)
        except EditError:
            self.whole = False  # the latest checkpoint is what counts
            raise

    # ------------------------------------------------------------------------------------------------ before the stream

    def on_train_start(self) -> None:
        """Cut the journal back to what the checkpoint knows, now that nothing can refuse the resume any more.

        Raises:
            EditError: if a run that does not resume would continue another run's journal.
        """
        if self._random:
            set_random_state(self._random)
        with self.ranks.together():
            self._cut_journal()

    def _cut_journal(self) -> None:
        if self.journal is None:
            return
        if self.journal.count and not self.batches and not self.starts_over:
            raise EditError(
                f"{self.journal.path} holds a run of {self.journal.count} batches; resume it with its checkpoint or choose "
                "another folder"
            )
        self.journal.truncate(self.batches, self.weights)

    def check_alike(self) -> None:
        """Refuse ranks that would not edit the same stream into the same model.

        Raises:
            EditError: naming the first rank that differs from the first one, and in what.
        """
        requests = getattr(getattr(self.trainer, "datamodule", None), "requests", ())
        check_alike(
            self.ranks,
            {
                "the original weights": self.weights_hash,
                "the edit set": fingerprint(requests),
                "the number of batches that lie behind": self.batches,
                "the options": self.settings,
            },
        )

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the masters and the state of editor and guards; leave out the model, which can be loaded again."""
        self.check_sound()
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(("masters.", "editor.", "guards."))
        }
        checkpoint["lit_edit"] = {
            **self._identity(),
            "templates": list(self.templates or ()),
            "position": self.position,
            "edits": self.edits,
            "batches": self.batches,
            "settled": self.settled,
            "settings": self.settings,
            # Of the last batch's end: what a batch that is broken off has drawn, it draws again.
            "random": self._random if self._random and self.settled == self.batches else random_state(),
            "probes": {name: rows.tolist() for name, rows in self.probe_start.items()},
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "format": 3,
            "pretrained": self.pretrained,
            "revision": self.revision,
            "layers": list(self.layers),
            "weights": self.weights_hash,
            "editor": type(self.editor).__name__,
            "guards": [type(guard).__name__ for guard in self.guards],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, editor, guard or layer set; take up position, templates and random state."""
        held = {name for name in self.state_dict() if name.startswith(("masters.", "editor.", "guards."))}
        state = check_identity(checkpoint, self._identity(), held)
        stored = ((f"the checkpoint's {name}", value) for name, value in checkpoint["state_dict"].items())
        sound(stored, "resume from an earlier checkpoint")
        trainer = self.trainer
        if trainer.training and not checkpoint.get("optimizer_states"):
            raise EditError(
                "the checkpoint holds weights only (--checkpoint.save_weights_only), so no run can go on from it; "
                "validate, test and predict can use it"
            )
        self.templates = tuple(state["templates"]) or None
        self.position, self.edits = int(state["position"]), int(state["edits"])
        self.batches = int(state["batches"])
        self.probe_start = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in state.get("probes", {}).items()}
        if not trainer.training:
            return
        if changed := changes(state["settings"], self.settings):
            rank_zero_info(f"Other settings than those of the run that wrote the checkpoint: {'; '.join(changed)}")
        owed, self.settled, self._random = state["settled"] < self.batches, self.batches, state["random"]
        # Asked of the stream and not of the counters: it may have grown behind what was its last batch when they were saved.
        finished = self.position >= len(getattr(getattr(trainer, "datamodule", None), "requests", ()))
        every = trainer.val_check_interval if trainer.check_val_every_n_epoch is None else None
        due = isinstance(every, int) and self.batches % every == 0
        settle_loops(checkpoint["loops"]["fit_loop"], self.batches, owed, finished, self.batches - due)

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        """Load the masters and show them in the model."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        self.show_model(self.master)
        return result
