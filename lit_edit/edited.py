"""A model under edit: its float32 masters, its original weights, and what is prepared from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError
from lit_edit.evaluation import Evaluated
from lit_edit.guards.base import Guard, viewing
from lit_edit.micro_batches import enough_memory
from lit_edit.models.identity import load_pretrained
from lit_edit.parallel.sharding import shard
from lit_edit.prompts import Encoder, sample_contexts
from lit_edit.spectrum import Spectrum
from lit_edit.statistics.convergence import scalars
from lit_edit.statistics.preparation import second_moments, spectra
from lit_edit.store import Store, fingerprint
from lit_edit.strategies import mesh_of
from lit_edit.targets import TargetOptions

OnPhase = Callable[[str, int, int], None]


class EditedModel(Evaluated):
    """The half of the continual editor that holds weights: masters, originals, what the model shows, and preparations."""

    pretrained: str
    revision: str | None
    model_dtype: str
    trust_remote_code: bool
    wanted_layers: list[int] | None
    layers: tuple[int, ...]
    editor: Editor
    guards: nn.ModuleList
    targets: TargetOptions
    corpus: Corpus
    moment_tokens: int | None
    moments_from: str | None
    moment_scalars: dict[str, float]
    """How well the second moments are known, once they are prepared."""
    store: Store
    seed: int
    templates: tuple[str, ...] | None
    """Context templates of the run, once they are sampled."""
    spectra: dict[int, Spectrum]
    wants_spectra: bool
    """Whether a callback needs the original spectra even if no guard does."""
    _model_hash: str | None
    """Hash of all parameters, where they can no longer be asked."""
    _listeners: list[OnPhase]
    _prepared: bool

    def configure_model(self) -> None:
        """Load the model (once) and take float32 masters of the edited matrices."""
        if self.net is not None:
            return
        # A model that has to be sharded is too large for every rank of a machine to hold it whole at the same time. Lightning
        # moves the module: loading straight onto a device would need accelerate.
        with self.ranks.in_turn(), torch.device("cpu"):
            dtype = getattr(torch, self.model_dtype)
            self.net, tokenizer = load_pretrained(self.pretrained, self.revision, dtype, self.trust_remote_code)
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
            mesh = mesh_of(self.trainer) if self._trainer is not None else None
            if mesh is not None:
                self.check_sharded()
                self._model_hash = fingerprint(dict(self.net.named_parameters()))
                shard(self.anatomy.blocks, mesh)

    def check_sharded(self) -> None:
        """Refuse what cannot work on a model of which every rank holds a part.

        Raises:
            EditError: saying what and why.
        """
        if not self.editor.runs_sharded:
            raise EditError(
                f"{type(self.editor).__name__} trains whole parameters of the model and cannot do so where ranks hold parts of "
                "them; use --trainer.strategy replicated, or another editor"
            )

    def master(self, layer: int) -> nn.Parameter:
        """The float32 weight of a layer that the optimiser owns, ``[d_out, d_in]``."""
        master: nn.Parameter = self.masters[f"layer_{layer}"]
        return master

    def original(self, layer: int) -> Tensor:
        """The unedited weight of a layer, ``[d_out, d_in]`` float32."""
        original: Tensor = getattr(self, f"original_{layer}")
        return original

    def show_model(self, weights: Callable[[int], Tensor]) -> None:
        """Copy one weight per edited layer into the model, in the model's dtype."""
        with torch.no_grad():
            for layer in self.layers:
                self.anatomy.show(layer, weights(layer))

    @contextmanager
    def original_model(self) -> Iterator[Anatomy]:
        """The unedited model inside the block; the edited one after it."""
        self.show_model(self.original)
        try:
            yield self.anatomy
        finally:
            self.show_model(self.master)

    @contextmanager
    def evaluated_model(self) -> Iterator[None]:
        """The edited model as it is evaluated: some guards (PRUNE) restrain only this view and never the weights behind it."""
        restraining = viewing(self.guard_list())
        if not restraining:
            yield
            return
        if not self._prepared:  # validate, test and predict need no moments, but they need these guards
            for layer in self.layers:
                for guard in restraining:
                    guard.prepare(layer, self.original(layer), None)
            self._prepared = True

        def seen(layer: int) -> Tensor:
            weight = self.master(layer).detach()
            for guard in restraining:
                weight = guard.view(layer, weight)
            return weight

        self.show_model(seen)
        try:
            yield
        finally:
            self.show_model(self.master)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """See :meth:`Evaluated.unedited`; unlike :meth:`original_model`, it puts back whatever was shown."""
        shown = {layer: self.anatomy.shown(layer).detach().clone() for layer in self.layers}
        self.show_model(self.original)
        try:
            yield
        finally:
            self.show_model(lambda layer: shown[layer])

    def guard_list(self) -> list[Guard]:
        """The guards in the order written."""
        return cast("list[Guard]", list(self.guards))  # a ModuleList forgets what it holds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with learning rate 1 on the masters, one named group per layer."""
        return torch.optim.SGD([{"params": [self.master(layer)], "name": f"layer_{layer}"} for layer in self.layers], lr=1.0)

    # ------------------------------------------------------------------------------------------------ preparations

    def listen(self, listener: OnPhase) -> None:
        """Tell ``listener(phase, done, total)`` how far slow parts of the work have come, until :meth:`unlisten`."""
        self._listeners.append(listener)

    def unlisten(self, listener: OnPhase) -> None:
        """Tell it no more."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _tell(self, phase: str, done: int, total: int) -> None:
        for listener in self._listeners:
            listener(phase, done, total)

    @enough_memory("what is prepared from the original model", "fewer blocks in --model.layers or a larger device help")
    def prepare(self) -> None:
        """Context templates, second moments, spectra: all from the original model, the slow ones from the cache if there."""
        with self.original_model() as anatomy:
            options = self.targets
            if not self.editor.needs_contexts:
                self.templates = ()
            if self.templates is None:
                self.templates = self.ranks.of_first(
                    sample_contexts(
                        anatomy.model,
                        self.encoder,
                        options.context_starts,
                        options.contexts,
                        options.context_lengths,
                        self.seed,
                    )
                )
            moments = (
                second_moments(
                    anatomy,
                    self.encoder,
                    self.layers,
                    self.corpus,
                    self.moment_tokens,
                    self.store,
                    self._tell,
                    self.moments_from,
                    rank_zero_info,
                    self.ranks,
                    self._model_hash,
                )
                if self.editor.needs_moments
                else {}
            )
            self.moment_scalars = scalars(moments)
            wanted = self.wants_spectra or any(guard.needs_spectrum for guard in self.guard_list())
            originals = {layer: self.original(layer) for layer in self.layers}
            self.spectra = spectra(originals, self.store, self._tell, self.ranks) if wanted else {}
        for layer in self.layers:
            self.editor.prepare(layer, self.original(layer), moments.get(layer))
            for guard in self.guard_list():
                guard.prepare(layer, self.original(layer), self.spectra.get(layer))
            if sum(guard.avoid(layer, self.original(layer)) is not None for guard in self.guard_list()) > 1:
                raise EditError("two guards want to constrain the solve; at most one may, the others have to project")
        self._prepared = True
