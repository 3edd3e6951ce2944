"""The continual editor: one batch of facts is one optimiser step of a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lit_edit.batch.bookkeeping import account, logged, mean, reached, tokenised
from lit_edit.batch.finite import new_state
from lit_edit.batch.outcome import BatchOutcome
from lit_edit.batch.rejection import solving
from lit_edit.batch.state import State, restore, snapshot
from lit_edit.corpus import Corpus, SampledCorpus
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError, Rejected
from lit_edit.guards.base import Guard
from lit_edit.journal import Applied
from lit_edit.micro_batches import enough_memory
from lit_edit.prompts import EditRows
from lit_edit.request import EditBatch
from lit_edit.runs.boundary import set_random_state
from lit_edit.runs.interrupts import Interrupts
from lit_edit.runs.resumable import ResumableModel
from lit_edit.spectrum import Spectrum
from lit_edit.store import Store
from lit_edit.strategies import ranks_of
from lit_edit.targets import TargetOptions, Targets
from lit_edit.workbench import Workbench


class ContinualEditor(ResumableModel):
    """Edits a stream of facts into a causal language model under any editor and any guards.

    ``training_step`` asks the editor what the layers should write; ``backward`` asks it, layer by layer, for the change that
    makes them write it, lets the guards cut it, and stores ``grad = -delta``; plain ``SGD(lr=1)`` applies all layers at once.
    Edited matrices have float32 masters that the optimiser owns; the model's own copy is a cast of them. A batch is all or
    nothing; editors that apply requests one after another refuse a bad one alone.

    Args:
        pretrained: folder or hub id of any Hugging Face causal language model, or ``world-gpt2`` or ``world-llama``.
        editor: which change writes a batch of facts.
        layers: blocks whose MLP down-projection is edited; targets are optimised at the last of them. Default: a proposal
            from the model's depth (:meth:`lit_edit.anatomy.Anatomy.proposed_layers`).
        guards: what the change must not touch, in the order written (REVIVE last).
        targets: options of the target optimisation.
        revision: revision of the hub id.
        dtype: dtype the model runs in.
        corpus: text for the second moments of the keys; default: sampled from the unedited model itself.
        moment_tokens: tokens of it to use; default: ten per input dimension of the edited weights, or all that ``corpus`` has
            where it is :class:`lit_edit.statistics.whole_documents.WholeDocuments` (the published 100,000 documents).
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
        if not -(2**63) <= seed < 2**64:
            raise EditError(f"--model.seed is {seed}; a seed has at most 64 bits")
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
        self.outcome: BatchOutcome | None = None
        self.spectra: dict[int, Spectrum] = {}
        self.wants_spectra = False
        self._listeners = []
        self._model_hash = None
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
        self.ranks = ranks_of(self.trainer)
        stream = getattr(self.trainer, "datamodule", None)
        if stream is not None and stage in ("fit", "validate"):
            stream.edited = lambda: self.position or len(stream.requests)

    def on_fit_start(self) -> None:
        """Refuse settings under which the numbers would silently be wrong; then prepare editor and guards."""
        trainer = self.trainer
        if trainer.precision != "32-true":
            raise EditError(
                f"--trainer.precision is {trainer.precision}; choose the model's dtype with --model.dtype and leave 32-true"
            )
        if trainer.accumulate_grad_batches != 1:
            raise EditError(
                f"--trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; a batch is one step, so it must be 1"
            )
        self.check_alike()
        self.prepare()
        if self.moment_scalars and not self.batches:
            for logger in trainer.loggers:
                logger.log_metrics(self.moment_scalars, step=0)

    # ------------------------------------------------------------------------------------------------ the step

    def training_step(self, batch: EditBatch, batch_idx: int) -> STEP_OUTPUT:
        """What should the layers write? The returned loss is for display only."""
        with self.ranks.together():
            return self._aim(batch)

    def _aim(self, batch: EditBatch) -> Tensor:
        started = time.perf_counter()
        outcome = BatchOutcome(batch)
        rows = tokenised(outcome, lambda request: self.editor.rows(self.encoder, request, self.templates or ()))
        bench = self.workbench()
        aimed = self._aimed(outcome, bench, rows)
        outcome.scalars["time/walk_seconds"] = time.perf_counter() - started - bench.seconds
        self._pending = (outcome, rows, bench, aimed)
        return torch.tensor(mean(bench.losses, "loss_N"))

    def _aimed(self, outcome: BatchOutcome, bench: Workbench, rows: list[EditRows]) -> Targets | None:
        """What the editor aims at; the batch is rejected where that is not finite."""
        self.check_sound()
        try:
            with self.ranks.together(), enough_memory(f"what a batch of {len(rows)} requests aims at"):
                return self.editor.aim(bench, rows) if rows else None
        except (Rejected, torch.linalg.LinAlgError) as reason:
            outcome.rejected = str(reason)
            return None

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
            ranks=self.ranks,
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Which change makes them write it? Leaves ``grad = -delta`` on every master, and everything else as it was."""
        assert self._pending is not None
        outcome, rows, bench, aimed = self._pending
        started, aiming = time.perf_counter(), bench.seconds
        before = snapshot(bench.stateful)
        changes: dict[int, Tensor] = {}
        try:
            if rows and outcome.rejected is None:
                with self.ranks.together(), solving(f"the solve of a batch of {len(rows)} requests"):
                    self.editor.change(bench, rows, aimed)
                    bench.finish()
                    new_state(bench.stateful, before)
            changes, self._state = bench.changes, snapshot(bench.stateful)
        except Rejected as reason:
            outcome.rejected, self._state = str(reason), before
        finally:
            restore(before)
            bench.clear()
        if outcome.rejected is not None and self._random:
            set_random_state(self._random)  # what a rejected batch has drawn, the next one draws
        self._hand_over(changes)
        account(outcome, rows, bench)
        outcome.scalars["time/targets_seconds"] = bench.seconds
        outcome.scalars["time/walk_seconds"] += time.perf_counter() - started - (bench.seconds - aiming)

    def _hand_over(self, changes: dict[int, Tensor]) -> None:
        """Changes as gradients: plain SGD with learning rate 1 then adds them."""
        for layer in self.layers:
            change = changes.get(layer)
            self.master(layer).grad = torch.zeros_like(self.master(layer)) if change is None else -change

    @enough_memory("applying a batch to the weights")
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
        kept = self.journal is not None or self.ranks.size > 1
        before = {layer: self.master(layer).detach().clone() for layer in self.layers} if kept else {}
        try:
            try:
                super().optimizer_step(epoch, batch_idx, optimizer, lambda: found)
                with self.ranks.together():
                    self.check_sound(state=False)
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
        applied = Applied(self.weights_hash, before, self.weights(), *reached(outcome, rows, bench))
        position, edits = outcome.batch.start + len(outcome.batch), self.edits + len(outcome.edited)
        self.journal.append(outcome, position, edits, applied)

    def batch_was_counted(self) -> None:
        """As :meth:`on_train_batch_start` of the next batch, for a callback that sees the run end before it."""
        if self.trainer.interrupted:
            self._interrupts.release()

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
        self.log_dict(logged(outcome, self.edits), batch_size=max(len(outcome.batch), 1))
        self.log("edits", float(self.edits), prog_bar=True, logger=False, batch_size=1)
