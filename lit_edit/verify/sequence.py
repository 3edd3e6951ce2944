"""One recorded sequence of a method of the MEMIT family, and its closed form on recorded keys and residuals.

Recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.editors import LocateThenEdit
from lit_edit.errors import EditError
from lit_edit.guards import Guard
from lit_edit.targets import StopRule, TargetOptions
from lit_edit.verify import moments
from lit_edit.verify.recording import Recording, TensorFile


@dataclass(frozen=True)
class Method:
    """One recorded sequence and everything needed to replay it."""

    name: str
    recording: Recording
    file: TensorFile
    layers: tuple[int, ...]
    options: TargetOptions
    make: Callable[[dict[str, Any]], LocateThenEdit]
    """The editor, given the recorded hyper-parameters."""
    stop: Callable[[], StopRule] | None = None
    """What ends an optimisation early, made anew for every batch."""
    guards: Callable[[], list[Guard]] = list
    """Guards, made anew for every replay."""

    @classmethod
    def of(
        cls, recording: Recording, name: str, make: Callable[[dict[str, Any]], LocateThenEdit], **extra: Any
    ) -> Method | None:
        """Read layers and hyper-parameters; ``None`` where the method was not recorded.

        Args:
            recording: the folder.
            name: stem of the file and key of the hyper-parameters.
            make: the editor, given the recorded hyper-parameters.
            extra: ``stop`` and ``guards``.
        """
        file = recording.tensors(name)
        if file is None:
            return None
        said = recording.options(name)
        try:
            options = TargetOptions(
                steps=said["v_num_grad_steps"],
                lr=said["v_lr"],
                clamp=said["clamp_norm_factor"],
                weight_decay=said["v_weight_decay"],
                kl_factor=said["kl_factor"],
            )
            layers = recording.anatomy.check_layers(set(said["layers"]))  # DeltaEdit names its last one twice
        except (KeyError, TypeError, ValueError) as error:
            raise EditError(f"{recording.folder / 'meta.json'} is incomplete: hyper_parameters/{name} lacks {error}") from error
        return cls(name, recording, file, layers, options, make, **extra)

    def editor(self) -> tuple[LocateThenEdit, bool]:
        """A fresh editor prepared on the original weights, and whether the recorded second moments went into it."""
        editor = self.make(self.recording.options(self.name))
        found, were_recorded = moments.recorded(self.recording, self.layers)
        for layer in self.layers:
            editor.allocate(layer, self.recording.anatomy.d_model, self.recording.anatomy.d_inner)
            editor.prepare(layer, self.recording.original[layer], found[layer])
        return editor, were_recorded

    def prepared_guards(self) -> list[Guard]:
        """Fresh guards prepared on the original weights."""
        guards = self.guards()
        for guard in guards:
            for layer in self.layers:
                guard.prepare(layer, self.recording.original[layer], None)
        return guards

    @property
    def obstacle(self) -> str | None:
        """Why the model's part cannot be replayed by this library, ``None`` if it can."""
        said, last = self.recording.options(self.name), len(self.recording.anatomy.blocks) - 1
        if said.get("fact_token", "subject_last") != "subject_last":
            return f"keys read at {said['fact_token']}, not covered"
        if max(said.get("v_loss_layer", last), self.layers[-1]) != last:
            return f"loss read at block {said['v_loss_layer']} instead of the last, not covered"
        return None

    @property
    def batches(self) -> range:
        """Indices of the batches that were edited."""
        return range(len(self.recording.batches))


@torch.no_grad()
def solved(method: Method, editor: LocateThenEdit) -> Iterator[tuple[int, int, Delta, Tensor]]:
    """``(batch, layer, delta, weight)`` of the closed form on recorded keys and residuals; ends where they end.

    The delta is the editor's own; the weight is that after the batch: the original plus all deltas so far, each cut by the
    guards and added in float32.
    """
    guards = method.prepared_guards()
    weights = {layer: method.recording.original[layer] for layer in method.layers}
    o, i = method.recording.anatomy.d_model, method.recording.anatomy.d_inner
    for batch in method.batches:
        n = len(method.recording.batches[batch])
        names = [f"batch{batch}/layer{layer}/{what}" for layer in method.layers for what in ("keys", "resid")]
        if any(name not in method.file for name in names):
            return
        for layer in method.layers:
            keys = method.file.matrix(f"batch{batch}/layer{layer}/keys", i, n).T
            residuals = method.file.matrix(f"batch{batch}/layer{layer}/resid", o, n).T
            delta = editor.solve(layer, keys, residuals, weights[layer])
            weights[layer] = weights[layer] + guarded(guards, layer, delta, weights[layer]).dense().float()
            yield batch, layer, delta, weights[layer]
            editor.remember(layer, keys, weights[layer])


def guarded(guards: Sequence[Guard], layer: int, delta: Delta, weight: Tensor, deferred: bool = True) -> Delta:
    """What guards leave of a delta; without ``deferred`` only those that act while a batch is still being solved."""
    for guard in guards:
        if deferred or not guard.deferred:
            delta = guard(layer, delta, weight)
    return delta
