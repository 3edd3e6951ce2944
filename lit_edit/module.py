"""The continual editor: one batch of facts is one optimiser step of a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lit_edit.boundary import random_state, set_random_state, settle_loops
from lit_edit.corpus import Corpus, SampledCorpus
from lit_edit.edited import EditedModel
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.guards.base import Guard
from lit_edit.identity import changes, check_identity
from lit_edit.interrupts import Interrupts
from lit_edit.journal import Applied, Journal
from lit_edit.outcome import BatchOutcome
from lit_edit.prompts import EditRows
from lit_edit.request import EditBatch, SetAside
from lit_edit.spectrum import Spectrum
from lit_edit.state import State, restore, snapshot
from lit_edit.store import Store
from lit_edit.targets import TargetOptions, Targets
from lit_edit.workbench import Rejected, Workbench, solving


class ContinualEditor(EditedModel):
    """Edits a stream of facts into a causal language model under any editor and any guards.

    ``training_step`` asks the editor what the layers should write; ``backward`` asks it, layer by layer, for the change that
    makes them write it, lets the guards cut it, and stores ``grad = -delta``; plain ``SGD(lr=1)`` applies all layers at once.
    Edited matrices have float32 masters that the optimiser owns; the model's own copy is a cast of them. A batch is all or
    nothing; editors that apply requests one after another refuse a bad one alone.

    Args:
        pretrained: folder or hub id of any Hugging Face causal language model.
        editor: which change writes a batch of facts.
        layers: blocks whose MLP down-projection is edited; targets are optimised at the last of them. Default: a proposal
            from the model's depth (:meth:`lit_edit.anatomy.Anatomy.proposed_layers`).
        guards: what the change must not touch, in the order written (REVIVE last).
        targets: options of the target optimisation.
        revision: revision of the hub id.
        dtype: dtype the model runs in.
        corpus: text for the second moments of the keys; default: sampled from the unedited model itself.
        moment_tokens: tokens of it to use; default: ten per input dimension of the edited weights, or all that ``corpus`` has
            where it is :class:`lit_edit.whole_documents.WholeDocuments` (the published 100,000 documents).
        moments_from: second moments to take from ``.npz`` files of the reference implementations instead: a folder, or a
            pattern with ``{}`` for the layer's number.
        cache_dir: where second moments and spectra are kept between runs.
        max_change: a batch whose change of any layer exceeds this multiple of the original weight's Frobenius norm is undone
            and recorded as rejected; default: no limit (what is not finite is always rejected).
        seed: of the sampled contexts.
        trust_remote_code: run Python files that come with the model; never done unless it is said here.

    Raises:
        EditError: for a model, layer set or setting that cannot be edited.
    """

    strict_loading = False  # a checkpoint holds the edited masters only; on_load_checkpoint checks what must be there

    def __init__(
        self,
        pretrained: str,
        editor: Editor,
        layers: list[int] | None = None,
        guards: list[Guard] | None = None,
        targets: TargetOptions = TargetOptions(),  # noqa: B008 (frozen)
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        corpus: Corpus | None = None,
        moment_tokens: int | None = None,
        moments_from: str | None = None,
        cache_dir: str = "checkpoints/cache",
        max_change: float | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if max_change is not None and not max_change > 0:
            raise EditError(f"--model.max_change is {max_change:g}; the largest relative change must be positive")
        if moment_tokens is not None and moment_tokens < 1:
            raise EditError(f"--model.moment_tokens is {moment_tokens}; at least one token is needed")
        self.pretrained, self.revision, self.model_dtype = pretrained, revision, dtype
        self.trust_remote_code = trust_remote_code
        self.wanted_layers, self.targets, self.seed, self.max_change = layers, targets, seed, max_change
        self.editor = editor
        self.guards = nn.ModuleList(guards or [])
        self.corpus = corpus or SampledCorpus()
        self.moment_tokens, self.moments_from = moment_tokens, moments_from
        self.store = Store(cache_dir)
        self.net: nn.Module | None = None
        self.templates: tuple[str, ...] | None = None
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
        self.outcome: BatchOutcome | None = None
        self._random: dict[str, Any] = {}
        self.spectra: dict[int, Spectrum] = {}
        self.wants_spectra = False
        self._listeners = []
        self._pending: tuple[BatchOutcome, list[EditRows], Workbench, Targets | None] | None = None
        self._state: State = []
        self._interrupts = Interrupts()
        self._prepared = False

    # ------------------------------------------------------------------------------------------------ before the stream

    def setup(self, stage: str) -> None:
        """Let the stream know how many of its requests lie behind; before the first edit, all are scored as they stand.

        Raises:
            EditError: on a device without float64, in which solves and spectra are computed.
        """
        device = self.trainer.strategy.root_device
        if device.type == "mps":
            raise EditError("edits are solved in float64, which Apple's GPU does not have; use --trainer.accelerator cpu")
        stream = getattr(self.trainer, "datamodule", None)
        if stream is not None and stage in ("fit", "validate"):
            stream.edited = lambda: self.position or len(stream.requests)

    def on_fit_start(self) -> None:
        """Refuse settings under which the numbers would silently be wrong; then prepare editor and guards."""
        trainer = self.trainer
        if trainer.world_size > 1:
            raise EditError(
                f"the run spans {trainer.world_size} processes, but edits run on one device; use --trainer.devices 1"
            )
        if trainer.precision != "32-true":
            raise EditError(
                f"--trainer.precision is {trainer.precision}; choose the model's dtype with --model.dtype and leave 32-true"
            )
        if trainer.accumulate_grad_batches != 1:
            raise EditError(
                f"--trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; a batch is one step, so it must be 1"
            )
        self.prepare()
        if self.moment_scalars and not self.batches:
            for logger in trainer.loggers:
                logger.log_metrics(self.moment_scalars, step=0)

    def on_train_start(self) -> None:
        """Cut the journal back to what the checkpoint knows, now that nothing can refuse the resume any more.

        Raises:
            EditError: if a run that does not resume would continue another run's journal.
        """
        if self._random:
            set_random_state(self._random)
        if self.journal is None:
            return
        if self.journal.count and not self.batches and not self.starts_over:
            raise EditError(
                f"{self.journal.path} holds a run of {self.journal.count} batches; resume it with its checkpoint or choose "
                "another folder"
            )
        self.journal.truncate(self.batches, self._weights)

    # ------------------------------------------------------------------------------------------------ the step

    def training_step(self, batch: EditBatch, batch_idx: int) -> STEP_OUTPUT:
        """What should the layers write? The returned loss is for display only."""
        started = time.perf_counter()
        outcome = BatchOutcome(batch)
        rows: list[EditRows] = []
        for index, request in enumerate(batch.requests):
            try:
                rows.append(self.editor.rows(self.encoder, request, self.templates or ()))
            except MalformedRecord as error:
                source = request.source or f"stream position {batch.start + index}"
                outcome.set_aside.append(SetAside(source, error.field, error.reason))
        bench = self.workbench()
        aimed = self.editor.aim(bench, rows) if rows else None
        outcome.scalars["time/walk_seconds"] = time.perf_counter() - started - bench.seconds
        self._pending = (outcome, rows, bench, aimed)
        return torch.tensor(_mean(bench.losses, "loss_N"))

    def workbench(self) -> Workbench:
        """The model, its weights and the guards, ready for one batch."""
        return Workbench(
            anatomy=self.anatomy,
            layers=self.layers,
            guards=self.guard_list(),
            master=lambda layer: self.master(layer).detach(),
            original=self.original,
            options=self.targets,
            pad=self.encoder.pad,
            max_change=self.max_change,
            tell=self._tell,
            stateful=[self.editor, *self.guard_list()],
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Which change makes them write it? Leaves ``grad = -delta`` on every master, and everything else as it was."""
        assert self._pending is not None
        outcome, rows, bench, aimed = self._pending
        started, aiming = time.perf_counter(), bench.seconds
        before = snapshot(bench.stateful)
        changes: dict[int, Tensor] = {}
        try:
            if rows:
                with solving():
                    self.editor.change(bench, rows, aimed)
                    bench.finish()
            changes, self._state = bench.changes, snapshot(bench.stateful)
        except Rejected as reason:
            outcome.rejected, self._state = str(reason), before
        finally:
            restore(before)
            bench.clear()
        self._hand_over(changes)
        self._account(outcome, rows, bench)
        outcome.scalars["time/targets_seconds"] = bench.seconds
        outcome.scalars["time/walk_seconds"] += time.perf_counter() - started - (bench.seconds - aiming)

    def _hand_over(self, changes: dict[int, Tensor]) -> None:
        """Changes as gradients: plain SGD with learning rate 1 then adds them."""
        for layer in self.layers:
            change = changes.get(layer)
            self.master(layer).grad = torch.zeros_like(self.master(layer)) if change is None else -change

    def _account(self, outcome: BatchOutcome, rows: list[EditRows], bench: Workbench) -> None:
        """What became of the requests."""
        refused = {id(row.request) for row, _ in bench.refused}
        for row, reason in bench.refused:
            outcome.set_aside.append(SetAside(row.request.source or row.request.name, "*", f"could not be written: {reason}"))
        if outcome.rejected is None:
            outcome.edited = tuple(row.request for row in rows if id(row.request) not in refused)
            outcome.scalars.update(bench.scalars)
            outcome.deltas = bench.thin()
            outcome.keys = {layer: torch.cat(parts) for layer, parts in bench.keys.items()}
        outcome.loss, outcome.probability = _mean(bench.losses, "loss_N"), _mean(bench.losses, "probability_N")

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Let SGD apply all layers; then commit, in the same call, everything that belongs to the batch.

        Interrupts wait from here until Lightning has counted the batch and logged its numbers: half of this must never be
        saved.
        """
        assert optimizer_closure is not None
        found = optimizer_closure()  # the step and its backward: what takes time can be interrupted
        self._interrupts.hold()
        self.whole = False
        before = {layer: self.master(layer).detach().clone() for layer in self.layers} if self.journal else {}
        try:
            try:
                super().optimizer_step(epoch, batch_idx, optimizer, lambda: found)
                # Here and not earlier: clipping, a learning rate or a callback may have changed what is really applied.
                self._record(before)
            except BaseException:
                for layer, weight in before.items():  # what could not be recorded was not written
                    self.master(layer).detach().copy_(weight)
                self.whole = bool(before)
                raise
            self._commit()
            self.whole = True
        except BaseException:
            self._interrupts.release()
            raise

    def _record(self, before: dict[int, Tensor]) -> None:
        """The batch into the journal; a record too many, after a crash right behind it, is cut off when the run resumes."""
        assert self._pending is not None
        outcome, rows, bench, _ = self._pending
        if self.journal is None:
            return
        refused = {id(row.request) for row, _ in bench.refused}
        place = {id(request): index for index, request in enumerate(outcome.batch.requests)}
        tried = [place[id(row.request)] for row in rows if id(row.request) not in refused]
        each = [(found.loss_N.tolist(), found.probability_N.tolist()) for found in bench.losses]
        numbers = [pair for losses, probabilities in each for pair in zip(losses, probabilities, strict=True)]
        reached = dict(zip(tried, numbers, strict=True)) if len(numbers) == len(tried) else {}
        applied = Applied(self.weights_hash, before, self._weights(), frozenset(tried), reached)
        position, edits = outcome.batch.start + len(outcome.batch), self.edits + len(outcome.edited)
        self.journal.append(outcome, position, edits, applied)

    def _weights(self) -> dict[int, Tensor]:
        """The masters by layer, ``[d_out, d_in]`` float32."""
        return {layer: self.master(layer).detach() for layer in self.layers}

    def batch_was_counted(self) -> None:
        """As :meth:`on_train_batch_start` of the next batch, for a callback that sees the run end before it."""
        if self.trainer.interrupted:
            self._interrupts.release()

    def settle(self) -> None:
        """Every number of the batches so far is logged: a checkpoint written from here on has nothing to make up for."""
        self.settled, self._random = self.batches, random_state()

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """The batch before is applied, recorded, counted, logged and validated: a waiting Ctrl-C may end the run."""
        loop = self.trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = self.batches  # Lightning counts one too many where it skips a validation as it resumes
        self.settle()
        self._interrupts.release()

    def on_validation_start(self) -> None:
        """See :meth:`Evaluated.on_validation_start`; the batch before is logged, so a waiting Ctrl-C may end the run."""
        if self.trainer.state.fn == "fit":
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = max(self.batches - 1, 0)
            self._interrupts.release()
        super().on_validation_start()

    def on_train_end(self) -> None:
        """The run is over and saved."""
        self._interrupts.release()

    def _commit(self) -> None:
        assert self._pending is not None
        outcome = self._pending[0]
        self._pending = None
        self.show_model(self.master)
        restore(self._state)
        self._state = []
        self.position = outcome.batch.start + len(outcome.batch)
        self.edits += len(outcome.edited)
        self.batches += 1
        self.outcome = outcome
        shown = {
            **outcome.scalars,
            "edit/count": float(self.edits),
            "target/loss": outcome.loss,
            "target/probability": outcome.probability,
        }
        self.log_dict(shown, batch_size=max(len(outcome.batch), 1))
        self.log("edits", float(self.edits), prog_bar=True, logger=False, batch_size=1)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the masters and the state of editor and guards; leave out the model, which can be loaded again."""
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


def _mean(found: list[Targets], name: str) -> float:
    """Mean over all requests whose targets were optimised, NaN where none were."""
    values = [getattr(targets, name) for targets in found]
    return float(torch.cat(values).mean()) if values else float("nan")
