"""The continual editor: one batch of facts is one optimiser step of a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus, SampledCorpus
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.forward import greedy
from lit_edit.guards.base import Guard
from lit_edit.identity import check_identity, load_pretrained
from lit_edit.journal import Journal
from lit_edit.keys import KeyPass
from lit_edit.metrics import EditScores
from lit_edit.preparation import second_moments, spectra
from lit_edit.probes.base import Probe
from lit_edit.prompts import EditRows, Encoder, sample_contexts
from lit_edit.request import EditBatch, EditRequest, SetAside
from lit_edit.scoring import Scorer
from lit_edit.spectrum import Spectrum
from lit_edit.store import Store, fingerprint
from lit_edit.targets import Step, TargetOptions, Targets, optimise

OnPhase = Callable[[str, int, int], None]


class _Rejected(Exception):
    """A batch that must not be written; its message is the reason for the journal."""


@dataclass
class BatchOutcome:
    """What became of one batch; the journal's record and the callbacks' view of it."""

    batch: EditBatch
    edited: tuple[EditRequest, ...] = ()
    """Requests that were written, in stream order."""
    set_aside: list[SetAside] = field(default_factory=list)
    """Requests of this batch that could not be tokenised, with reasons."""
    rejected: str | None = None
    """Why the whole batch was undone; ``None`` if it was written."""
    loss: float = float("nan")
    """Mean target loss at the end of the target optimisation."""
    probability: float = float("nan")
    """Mean probability of the target tokens reached by the target optimisation."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Norms, shares and times of the step, by logged name."""


class ContinualEditor(L.LightningModule):
    """Edits a stream of facts into a causal language model under any editor and any guards.

    ``training_step`` optimises what the layers should write (the only autograd); ``backward`` asks the editor, layer by
    layer, for the closed-form change that makes them write it, lets the guards cut it, and stores ``grad = -delta``; plain
    ``SGD(lr=1)`` applies all layers at once. Edited matrices have float32 masters that the optimiser owns; the model's own
    copy is a cast of them. A batch is all or nothing.

    Args:
        pretrained: folder or hub id of any Hugging Face causal language model.
        editor: which change makes the keys write the residuals.
        layers: blocks whose MLP down-projection is edited; targets are optimised at the last of them. Default: a proposal
            from the model's depth (:meth:`lit_edit.anatomy.Anatomy.proposed_layers`).
        guards: what the change must not touch, in the order written (REVIVE last).
        targets: options of the target optimisation.
        revision: revision of the hub id.
        dtype: dtype the model runs in.
        corpus: text for the second moments of the keys; default: sampled from the unedited model itself.
        moment_tokens: tokens of it to use; default: ten per input dimension of the edited weights.
        cache_dir: where second moments and spectra are kept between runs.
        max_change: a batch whose change of any layer exceeds this multiple of the original weight's Frobenius norm is undone
            and recorded as rejected; default: no limit (what is not finite is always rejected).
        seed: of the sampled contexts.

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
        cache_dir: str = "checkpoints/cache",
        max_change: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_change is not None and not max_change > 0:
            raise EditError(f"--model.max_change is {max_change:g}; the largest relative change must be positive")
        if moment_tokens is not None and moment_tokens < 1:
            raise EditError(f"--model.moment_tokens is {moment_tokens}; at least one token is needed")
        self.pretrained, self.revision, self.model_dtype = pretrained, revision, dtype
        self.wanted_layers, self.targets, self.seed, self.max_change = layers, targets, seed, max_change
        self.editor = editor
        self.guards = nn.ModuleList(guards or [])
        self.corpus = corpus or SampledCorpus()
        self.moment_tokens = moment_tokens
        self.store = Store(cache_dir)
        self.net: nn.Module | None = None
        self.templates: tuple[str, ...] | None = None
        self.position = 0
        """Requests of the stream that lie behind: written, rejected or set aside."""
        self.edits = 0
        """Requests that were written."""
        self.journal: Journal | None = None
        self.outcome: BatchOutcome | None = None
        self.scores = EditScores("before")
        self.probe_means: dict[str, MeanMetric] = {}
        self.spectra: dict[int, Spectrum] = {}
        self.wants_spectra = False
        """Whether a callback needs the original spectra even if no guard does."""
        self._listeners: list[OnPhase] = []
        self._pending: tuple[BatchOutcome, list[EditRows], Targets] | None = None
        self._keys: dict[int, Tensor] = {}

    # ------------------------------------------------------------------------------------------------ the model

    def configure_model(self) -> None:
        """Load the model (once) and take float32 masters of the edited matrices."""
        if self.net is not None:
            return
        with torch.device("cpu"):  # Lightning moves the module; loading straight onto a device would need accelerate
            self.net, tokenizer = load_pretrained(self.pretrained, self.revision, getattr(torch, self.model_dtype))
            self.net.requires_grad_(False)
            self.anatomy = Anatomy.of(self.net)
            self.encoder = Encoder(tokenizer, self.anatomy.positions)
            wanted = self.anatomy.proposed_layers() if self.wanted_layers is None else self.wanted_layers
            self.layers = self.anatomy.check_layers(wanted)
            self.masters = nn.ParameterDict()
            for layer in self.layers:
                weight = self.anatomy.weight(layer)
                # ``float()`` alone would share the memory of a float32 model.
                self.masters[f"layer_{layer}"] = nn.Parameter(weight.float().clone().contiguous(), requires_grad=False)
                self.register_buffer(f"original_{layer}", weight.float().clone().contiguous(), persistent=False)
                self.editor.allocate(layer, *weight.shape)
            self.weights_hash = fingerprint({str(layer): self.original(layer) for layer in self.layers})

    def master(self, layer: int) -> nn.Parameter:
        """The float32 weight of a layer that the optimiser owns, ``[d_out, d_in]``."""
        return self.masters[f"layer_{layer}"]

    def original(self, layer: int) -> Tensor:
        """The unedited weight of a layer, ``[d_out, d_in]`` float32."""
        return getattr(self, f"original_{layer}")

    def show_model(self, weights: Callable[[int], Tensor]) -> None:
        """Copy one weight per edited layer into the model, in the model's dtype."""
        with torch.no_grad():
            for layer in self.layers:
                self.anatomy.weight(layer).copy_(weights(layer))

    @contextmanager
    def original_model(self) -> Iterator[Anatomy]:
        """The unedited model inside the block; the edited one after it."""
        self.show_model(self.original)
        try:
            yield self.anatomy
        finally:
            self.show_model(self.master)

    def guard_list(self) -> list[Guard]:
        """The guards in the order written."""
        return cast("list[Guard]", list(self.guards))  # a ModuleList forgets what it holds

    @property
    def scorer(self) -> Scorer:
        """Scores text with the model as it is."""
        return Scorer(self.anatomy, self.encoder)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with learning rate 1 on the masters, one named group per layer."""
        return torch.optim.SGD([{"params": [self.master(layer)], "name": f"layer_{layer}"} for layer in self.layers], lr=1.0)

    # ------------------------------------------------------------------------------------------------ before the stream

    def listen(self, listener: OnPhase) -> None:
        """Tell ``listener(phase, done, total)`` how far slow parts of the work have come."""
        self._listeners.append(listener)

    def _tell(self, phase: str, done: int, total: int) -> None:
        for listener in self._listeners:
            listener(phase, done, total)

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

    def prepare(self) -> None:
        """Context templates, second moments, spectra: all from the original model, the slow ones from the cache if there."""
        with self.original_model() as anatomy:
            options = self.targets
            if self.templates is None:
                self.templates = sample_contexts(
                    anatomy.model, self.encoder, options.context_starts, options.contexts, options.context_tokens, self.seed
                )
            moments = (
                second_moments(anatomy, self.encoder, self.layers, self.corpus, self.moment_tokens, self.store, self._tell)
                if self.editor.needs_moments
                else {}
            )
            wanted = self.wants_spectra or any(guard.needs_spectrum for guard in self.guard_list())
            originals = {layer: self.original(layer) for layer in self.layers}
            self.spectra = spectra(originals, self.store, self._tell) if wanted else {}
        for layer in self.layers:
            self.editor.prepare(layer, self.original(layer), moments.get(layer))
            for guard in self.guard_list():
                guard.prepare(layer, self.original(layer), self.spectra.get(layer))

    # ------------------------------------------------------------------------------------------------ the step

    def training_step(self, batch: EditBatch, batch_idx: int) -> STEP_OUTPUT:
        """What should the layers write? Targets of the batch; the returned loss is for display only."""
        started = time.perf_counter()
        outcome = BatchOutcome(batch)
        rows: list[EditRows] = []
        edited = []
        for index, request in enumerate(batch.requests):
            try:
                rows.append(self.encoder.rows(request, self.templates or ()))
                edited.append(request)
            except MalformedRecord as error:
                source = request.source or f"stream position {batch.start + index}"
                outcome.set_aside.append(SetAside(source, error.field, error.reason))
        outcome.edited = tuple(edited)
        if rows:
            targets = self._optimise(rows)
            outcome.loss, outcome.probability = float(targets.loss_N.mean()), float(targets.probability_N.mean())
        else:
            width = self.anatomy.d_model
            empty = torch.zeros(0, width, device=self.device)
            targets = Targets(empty, empty, empty[:, 0], empty[:, 0])
        outcome.scalars["time/targets_seconds"] = time.perf_counter() - started
        self._pending = (outcome, rows, targets)
        return torch.tensor(outcome.loss)

    def _optimise(self, rows: list[EditRows]) -> Targets:
        passes = 0
        chunks = -(-len(rows) // self.targets.requests_at_once)

        def count(step: Step) -> None:
            nonlocal passes
            passes += 1
            self._tell("targets", passes, chunks * self.targets.steps)

        return optimise(self.anatomy, rows, self.layers[-1], self.targets, self.encoder.pad, count)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Which change makes them write it? The walk over the layers; leaves ``grad = -delta`` on every master."""
        assert self._pending is not None
        outcome, rows, targets = self._pending
        started = time.perf_counter()
        try:
            deltas, self._keys = self.walk(rows, targets, outcome.scalars) if rows else ({}, {})
        except _Rejected as reason:
            deltas, self._keys = {}, {}
            outcome.rejected, outcome.edited = str(reason), ()
        for layer in self.layers:
            delta = deltas.get(layer)
            self.master(layer).grad = torch.zeros_like(self.master(layer)) if delta is None else -delta
        outcome.scalars["time/walk_seconds"] = time.perf_counter() - started

    @torch.no_grad()
    def walk(
        self, rows: Sequence[EditRows], targets: Targets, scalars: dict[str, float]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Solve layer by layer, shallow to deep; the model is as before when this returns or raises.

        Args:
            rows: rows of every request.
            targets: what block ``layers[-1]`` should put out.
            scalars: filled with norms and shares by logged name.

        Returns:
            Changes ``[d_out, d_in]`` float32 and keys ``[n, d_in]`` by layer.
        """
        deltas: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        reader = KeyPass(self.anatomy, rows, self.encoder.pad, self.targets.requests_at_once)
        try:
            for index, layer in enumerate(self.layers):
                self._tell("layers", index + 1, len(self.layers))
                keys[layer] = reader.keys(layer)
                missing = targets.values_ND - reader.values(self.layers[-1])
                residuals = missing / (len(self.layers) - index)
                residuals = self.anatomy.pull_back(layer, reader.written(), residuals)
                deltas[layer] = self._change(layer, keys[layer], residuals, scalars)
                # The next layer has to see this one as it will be written.
                self.anatomy.weight(layer).copy_(self.master(layer) + deltas[layer])
        finally:
            self.show_model(self.master)
        return deltas, keys

    def _change(self, layer: int, keys: Tensor, residuals: Tensor, scalars: dict[str, float]) -> Tensor:
        """The guarded change of one layer, dense float32; raises :class:`_Rejected` if it must not be written."""
        weight = self.master(layer).detach()
        for name, value in (("keys", keys), ("residuals", residuals)):
            if not bool(torch.isfinite(value).all()):
                raise _Rejected(f"the {name} of layer {layer} are not finite")
        spaces = [guard.avoid(layer, weight) for guard in self.guard_list()]
        avoid = next((space for space in spaces if space is not None), None)
        delta = self.editor.solve(layer, keys, residuals, avoid)
        before = float(delta.norm())
        for index, guard in enumerate(self.guard_list()):
            name = type(guard).__name__
            if f"guard/{name}/removed_share/layer_{layer}" in scalars:
                name = f"{name}_{index}"
            delta = guard(layer, delta, weight)
            after = float(delta.norm())
            scalars[f"guard/{name}/removed_share/layer_{layer}"] = 1.0 - (after / before) ** 2 if before > 0 else 0.0
            before = after
        if not delta.is_finite():
            raise _Rejected(f"the change of layer {layer} is not finite")
        share = before / float(self.original(layer).norm())
        if self.max_change is not None and share > self.max_change:
            raise _Rejected(
                f"the change of layer {layer} is {share:.3g} times its original norm, over the budget of {self.max_change:g}"
            )
        scalars[f"delta/norm/layer_{layer}"] = before
        scalars[f"delta/residual_norm/layer_{layer}"] = float(residuals.norm(dim=1).mean())
        return delta.dense().float()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let SGD apply all layers; then commit, in the same call, everything that belongs to the batch."""
        super().optimizer_step(*args, **kwargs)
        self._commit()

    def _commit(self) -> None:
        assert self._pending is not None
        outcome = self._pending[0]
        self._pending = None
        self.show_model(self.master)
        for layer, keys in self._keys.items():
            self.editor.remember(layer, keys)
        self._keys = {}
        self.position = outcome.batch.start + len(outcome.batch)
        self.edits += len(outcome.edited)
        self.outcome = outcome
        if self.journal is not None:
            self.journal.append(outcome, self.position, self.edits)
        shown = {
            **outcome.scalars,
            "edit/count": float(self.edits),
            "target/loss": outcome.loss,
            "target/probability": outcome.probability,
        }
        self.log_dict(shown, batch_size=max(len(outcome.batch), 1))
        self.log("edits", float(self.edits), prog_bar=True, logger=False, batch_size=1)

    # ------------------------------------------------------------------------------------------------ watching

    def _probes(self) -> list[Probe]:
        return list(getattr(getattr(self.trainer, "datamodule", None), "probes", None) or [])

    def on_validation_epoch_start(self) -> None:
        """Forget earlier scores; before the first edit the protocol is ``before``, later ``so_far``."""
        self.scores = EditScores("so_far" if self.position else "before")
        self.probe_means = {probe.name: MeanMetric().to(self.device) for probe in self._probes()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0 re-scores edits made so far; each further loader is one probe."""
        if dataloader_idx == 0:
            self.scores.update(self.scorer.requests(batch.requests))
            return
        probe = self._probes()[dataloader_idx - 1]
        values, weights = probe.measure(self.scorer, batch)
        self.probe_means[probe.name].update(values.to(self.device), weights.to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Log rates of the edits so far and the probes."""
        found = {name: float(value) for name, value in self.scores.compute().items()}
        for probe in self._probes():
            mean = float(self.probe_means[probe.name].compute())
            found[f"probe/{probe.name}/{probe.scoring}"] = probe.summarise(mean)
        self.log_dict(found)

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As for validation, over all edits of the stream."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As for validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: EditBatch, batch_idx: int) -> list[dict[str, Any]]:
        """What the model says now: greedy continuation of every edit prompt, as long as the longer of its two answers."""
        return [
            {
                "case_id": request.case_id,
                "prompt": request.text,
                "target_new": request.target_new,
                "said": self._answer(request),
            }
            for request in batch.requests
        ]

    def _answer(self, request: EditRequest) -> str | None:
        """The model's own words after the edit prompt, ``None`` where an answer of the request cannot be tokenised."""
        answers = [answer for answer in (request.target_new, request.target_true) if answer]
        try:
            ids, _ = self.encoder.encode(request.text)
            length = max(len(self.encoder.with_target(request.text, answer)[0]) - len(ids) for answer in answers)
        except MalformedRecord:
            return None
        new = greedy(self.anatomy, ids, max(length, 1), self._ends())
        return self.encoder.tokenizer.decode(new, skip_special_tokens=True).strip()

    def _ends(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's own, and those of the generation settings (Llama-3 has several)."""
        said = getattr(getattr(self.net, "generation_config", None), "eos_token_id", None)
        ends = [*(said if isinstance(said, list) else [said]), self.encoder.tokenizer.eos_token_id]
        return {int(token) for token in ends if token is not None}

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
            "journal": 0 if self.journal is None else self.journal.count,
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "format": 1,
            "pretrained": self.pretrained,
            "revision": self.revision,
            "layers": list(self.layers),
            "weights": self.weights_hash,
            "editor": type(self.editor).__name__,
            "guards": [type(guard).__name__ for guard in self.guards],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, editor, guard or layer set; take up position and templates."""
        state = check_identity(checkpoint, self._identity(), {f"masters.layer_{layer}" for layer in self.layers})
        self.templates = tuple(state["templates"]) or None
        self.position, self.edits = int(state["position"]), int(state["edits"])
        if self.journal is not None:
            self.journal.truncate(int(state["journal"]))

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        """Load the masters and show them in the model."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        self.show_model(self.master)
        return result
