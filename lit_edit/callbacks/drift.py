"""How far editing has turned the edited weights away from the original ones, while the stream runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_edit.algebra.drift import GROUPS, MEASURES, cosine, drift, examine, sizes
from lit_edit.algebra.key_memory import KeyMemory
from lit_edit.board import place
from lit_edit.callbacks.drift_figures import overlap_figure, spectrum_figure
from lit_edit.callbacks.watcher import StreamWatcher
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.figures import to_image
from lit_edit.request import EditRequest

__all__ = ["GROUPS", "MEASURES", "SpectralDrift", "drift"]

_DENSE = 2**24
"""Numbers of a change without thin factors that are kept until the next batch; of larger ones nothing is (64 MiB)."""


class SpectralDrift(StreamWatcher):
    """Logs ``drift/<measure>/layer_<i>`` of every edited layer; docs/spectra.md explains the measures.

    It reads weights after the batch and changes nothing. The weights behind the model are looked at: a guard that restrains
    only what evaluation is shown (PRUNE's view) does not count. Every look finds the dominant singular vectors; every
    ``full_every``-th look, and the one at the end of the stream, finds all singular values as well, for the measures that need
    them and for two figures per layer in TensorBoard, ``drift/spectrum/layer_<i>`` and ``drift/overlap/layer_<i>``. Matrices
    whose smaller side is at most :data:`lit_edit.algebra.leading.EXACT_SIDE` are decomposed in full at every look, which is
    cheap. A measure is exact to the tolerances stated in :mod:`lit_edit.algebra.leading`, or missing at that look.

    What is kept between batches, and in checkpoints: the last change of every layer (as thin factors; without those up to
    2^24 numbers, and nothing above), and directions of earlier keys (:class:`lit_edit.algebra.key_memory.KeyMemory`).

    Args:
        every_n_batches: batches between two looks; 0 turns it off. The last batch of the stream is always looked at.
        tau: share of the singular values that defines the dominant subspace looked at.
        full_every: looks between two that find all singular values; 0 for none, not even the last one.
        figures: whether to draw.
        remembered_keys: earlier keys per layer that new ones are compared with; 0 for no comparison.

    Raises:
        EditError: if ``tau`` is outside (0, 1), or a number is negative.
    """

    def __init__(
        self,
        every_n_batches: int = 1,
        tau: float = 0.1,
        full_every: int = 10,
        figures: bool = True,
        remembered_keys: int = 2048,
    ) -> None:
        if not 0 < tau < 1:
            raise EditError(f"SpectralDrift's tau is {tau:g}; the share of the singular values must lie in (0, 1)")
        super().__init__(every_n_batches)
        for name, value in (("full_every", full_every), ("remembered_keys", remembered_keys)):
            if value < 0:
                raise EditError(f"SpectralDrift's {name} is {value}; it must be 0 (off) or more")
        self.tau, self.full_every, self.figures, self.remembered_keys = tau, full_every, figures, remembered_keys
        self.forget()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Ask for the original spectra even where no guard needs them."""
        super().setup(trainer, pl_module, stage)
        if self.every_n_batches:
            pl_module.wants_spectra = True

    def forget(self) -> None:
        """See :meth:`StreamWatcher.forget`."""
        self._keys = KeyMemory(self.remembered_keys)
        self._previous: dict[int, Delta] = {}
        self._of_batch: dict[int, dict[str, float]] = {}

    def record(self, batch: int, positions: Sequence[int]) -> None:
        """Measure the batch itself: its change, and its keys against earlier ones."""
        if not self.every_n_batches:
            return
        module = self._module
        for layer in module.layers:
            change = module.outcome.deltas.get(layer)
            if change is None:
                change = Delta.from_dense(-module.master(layer).grad)
            self._of_batch[layer] = self._batch_measures(layer, change, module.outcome.keys.get(layer))

    def _batch_measures(self, layer: int, change: Delta, keys_NI: Tensor | None) -> dict[str, float]:
        norm, largest = sizes(change)
        found = {"last_delta_norm": norm, "last_delta_sigma_max": largest}
        if norm > 0:
            before, kept = self._previous.pop(layer, None), _kept(change)
            turned = None if before is None or kept is None else cosine(_beside(before, kept), kept)
            if turned is not None:
                found["delta_cosine"] = turned
            if kept is not None:
                self._previous[layer] = kept
        if keys_NI is not None and self.remembered_keys:
            found |= self._keys.cosines(layer, keys_NI)
            self._keys.add(layer, keys_NI)
        return found

    def shown(self, pl_module: Any) -> AbstractContextManager[Any]:
        """See :meth:`StreamWatcher.shown`; the model is not run, so it may show what it does."""
        return nullcontext()

    def look(self, trainer: L.Trainer, pl_module: Any, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Measure all layers, and draw if it is time."""
        run: Any = trainer
        over = trainer.is_last_batch or pl_module.position >= len(run.datamodule.requests)
        full = bool(self.full_every) and (over or (pl_module.batches // self.every_n_batches) % self.full_every == 0)
        seen = pl_module.ranks.spread(pl_module.layers, lambda mine: [self._examine(pl_module, layer, full) for layer in mine])
        found: dict[str, float] = {}
        for layer, (measures, pictures) in zip(pl_module.layers, seen, strict=True):
            measures |= self._of_batch.get(layer, {})
            found |= {f"drift/{name}/layer_{layer}": measures[name] for name in MEASURES if name in measures}
            for name, image in pictures.items():
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        tag, step = place(logger, f"drift/{name}/layer_{layer}", trainer.global_step - 1)
                        logger.experiment.add_image(tag, image, step)
        return found

    def _examine(self, pl_module: Any, layer: int, full: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
        """What is measured of a layer, and its figures."""
        spectrum = pl_module.spectra[layer]
        seen = examine(spectrum, pl_module.original(layer), pl_module.master(layer).detach(), self.tau, full)
        boards = any(isinstance(logger, TensorBoardLogger) for logger in pl_module.trainer.loggers)
        if not (full and self.figures and boards) or seen.spectrum is None:
            return dict(seen.measures), {}
        edits = f"layer {layer} after {pl_module.edits:,} edits"
        rank = seen.then.rank
        pictures = {
            "spectrum": spectrum_figure(spectrum.sigma, seen.spectrum.sigma, rank, f"Singular values, {edits}"),
            "overlap": overlap_figure(seen.then, seen.spectrum, f"Overlap of dominant directions, {edits}"),
        }
        return dict(seen.measures), {name: to_image(picture) for name, picture in pictures.items()}

    def memory(self) -> dict[str, Any]:
        """See :meth:`StreamWatcher.memory`."""
        return {
            "keys": self._keys.state(),
            "previous": {layer: [delta.left, delta.right, delta.full] for layer, delta in self._previous.items()},
            "of_batch": {layer: dict(measures) for layer, measures in self._of_batch.items()},
        }

    def remember(self, memory: dict[str, Any]) -> None:
        """See :meth:`StreamWatcher.remember`."""
        self._keys.load(memory["keys"])
        self._previous = {layer: Delta(*parts) for layer, parts in memory["previous"].items()}
        self._of_batch = {layer: dict(measures) for layer, measures in memory["of_batch"].items()}


def _kept(change: Delta) -> Delta | None:
    """A float32 copy for the comparison with the next change; ``None`` if it is dense and large."""
    if not change.is_low_rank and change.dense().numel() > _DENSE:
        return None
    return change.to(torch.float32)


def _beside(one: Delta, other: Delta) -> Delta:
    """The first on the device of the second: what a checkpoint held comes back on the CPU."""
    device = (other.factors[0] if other.is_low_rank else other.dense()).device
    return Delta(*(None if part is None else part.to(device) for part in (one.left, one.right, one.full)))
