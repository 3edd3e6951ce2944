"""Whole batches: targets, keys, solve and guard of this library against the textbook, on the same requests.

Legend: I = d_in, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import textbook
from benchmarks.stopwatch import Clock, Stopwatch
from lit_edit.anatomy import Anatomy
from lit_edit.editors import MEMIT
from lit_edit.guards import REVIVE
from lit_edit.moments import SecondMoment
from lit_edit.prompts import EditRows
from lit_edit.spectrum import Spectrum, Subspace, decompose
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench

STEP = ("targets", "keys", "solve")
"""Parts of a batch that the ratios count."""


@dataclass(frozen=True)
class Ground:
    """A model with everything that is prepared once per run."""

    anatomy: Anatomy
    layers: tuple[int, ...]
    moments: dict[int, Tensor]  # [I, I] float32
    originals: dict[int, Tensor]  # [D, I] float32
    spectra: dict[int, Spectrum]
    lam: float
    options: TargetOptions
    pad: int = 0

    @classmethod
    def prepare(cls, model: torch.nn.Module, layers: Sequence[int], options: TargetOptions, lam: float, seed: int) -> Ground:
        """Everything for a model; second moments are random ones whose eigenvalues span six decades."""
        anatomy = Anatomy.of(model)
        originals = {layer: anatomy.weight(layer).float().clone() for layer in layers}
        moments = {layer: random_moment(anatomy.d_inner, seed + layer, anatomy.device) for layer in layers}
        spectra = {layer: decompose(weight) for layer, weight in originals.items()}
        return cls(anatomy, tuple(layers), moments, originals, spectra, lam, options)

    def editor(self) -> MEMIT:
        """MEMIT with history, prepared on every layer."""
        editor = MEMIT(lam=self.lam, history=True)
        for layer in self.layers:
            editor.allocate(layer, self.anatomy.d_model, self.anatomy.d_inner)
            editor.prepare(layer, self.originals[layer], SecondMoment(self.moments[layer], 10 * self.anatomy.d_inner))
        return editor

    def guard(self) -> REVIVE:
        """REVIVE with its default threshold, prepared on every layer."""
        guard = REVIVE()
        for layer in self.layers:
            guard.prepare(layer, self.originals[layer], self.spectra[layer])
        return guard

    def bench(self, editor: MEMIT, guard: REVIVE) -> Workbench:
        """A workbench on the unedited weights."""
        return Workbench(
            anatomy=self.anatomy,
            layers=self.layers,
            guards=[guard],
            master=lambda layer: self.originals[layer],
            original=lambda layer: self.originals[layer],
            options=self.options,
            pad=self.pad,
        )


def random_moment(width: int, seed: int, device: torch.device) -> Tensor:
    """A positive definite ``[width, width]`` matrix with eigenvalues of very different size, as second moments have."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, min(width, 256), generator=generator).to(device)
    scale = torch.logspace(-3, 0, width, device=device)
    inner = (scale[:, None] * mix) @ (mix.T * scale) / mix.shape[1]
    inner.diagonal().add_(1e-6 + scale.square() * 1e-2)
    return inner


def ours(
    ground: Ground, requests: Sequence[EditRows], editor: MEMIT, guard: REVIVE, clock: Clock | None = None
) -> tuple[Stopwatch, dict[int, Tensor], Tensor]:
    """Seconds of one batch by part, its changes, and its targets.

    Args:
        ground: the model.
        requests: rows of every request.
        editor: prepared on every layer.
        guard: prepared on every layer.
        clock: what is read.
    """
    watch = Stopwatch(clock)
    bench = ground.bench(editor, guard)
    watch.around(editor, "solve", "solve")
    watch.around(guard, "forward", "guard")
    watch.around(guard, "report", "guard")
    watch.around(bench, "write", "write")
    reader = bench.reader

    def watched(rows: Sequence[EditRows]) -> Any:
        with watch.part("keys"):
            found = reader(rows)
        for name in ("keys", "values", "written"):
            watch.around(found, name, "keys")
        return found

    bench.reader = watched  # type: ignore[method-assign]
    with watch.part("targets"):
        aimed = editor.aim(bench, requests)
    try:
        with watch.part("other"):
            editor.change(bench, requests, aimed)
    finally:
        bench.clear()
        # The instance attribute hides the class's method; deleting it gives the method back.
        del editor.solve, guard.forward, guard.report
    assert aimed is not None
    return watch, bench.changes, aimed.values_ND


def by_the_book(
    ground: Ground,
    requests: Sequence[EditRows],
    timed_targets: Sequence[int] | None = None,
    targets_ND: Tensor | None = None,
    as_released: bool = False,
    clock: Clock | None = None,
) -> tuple[Stopwatch, dict[int, Tensor]]:
    """The same by the textbook.

    Args:
        ground: the model.
        requests: rows of every request.
        timed_targets: which requests to optimise, where not all; their time is scaled to all. It is the same work for each.
        targets_ND: targets of all requests, needed if only some are optimised.
        as_released: with what the released code computes twice.
        clock: what is read.
    """
    protected = {
        layer: Subspace(space.left.double(), space.right.double())
        for layer, space in ((layer, ground.guard().protected(layer)) for layer in ground.layers)
    }
    watch = Stopwatch(clock)
    if timed_targets is not None:
        for at in timed_targets:
            with watch.part("targets"):
                textbook.target(ground.anatomy, requests[at], ground.layers[-1], ground.options, ground.pad, as_released)
        watch.seconds["targets"] *= len(requests) / len(timed_targets)
    found = textbook.edit(
        ground.anatomy,
        requests,
        ground.layers,
        ground.moments,
        ground.lam,
        ground.options,
        ground.pad,
        protected,
        targets_ND=targets_ND,
        as_released=as_released,
        watch=watch,
    )
    return watch, found.deltas
