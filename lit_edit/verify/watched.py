"""A workbench on a recorded model, for methods whose own walk is replayed: it keeps what target optimisations went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_edit.prompts import EditRows
from lit_edit.targets import Step, Targets, optimise
from lit_edit.verify.sequence import Method
from lit_edit.workbench import Workbench


@dataclass
class Watched(Workbench):
    """Weights are those of a dictionary, which :meth:`commit` brings up to date."""

    weights: dict[int, Tensor] = field(default_factory=dict)
    steps: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Of the last optimisation, by request: the change and the terms of the loss at every forward pass."""

    @classmethod
    def of(cls, method: Method, weights: dict[int, Tensor], stateful: Sequence[Any] = ()) -> Watched:
        """A workbench without guards on some weights of a recorded model; shows them in it."""
        recording = method.recording
        bench = cls(
            anatomy=recording.anatomy,
            layers=method.layers,
            guards=(),
            master=lambda layer: weights[layer],
            original=lambda layer: recording.original[layer],
            options=method.options,
            pad=recording.encoder.pad,
            stateful=stateful,
            weights=weights,
        )
        bench.clear()
        return bench

    def optimise(
        self, rows: Sequence[EditRows], layer: int | None = None, origin_ND: Tensor | None = None, **extra: Any
    ) -> Targets:
        """See :meth:`lit_edit.workbench.Workbench.optimise`."""
        self.steps = {}
        at = self.layers[-1] if layer is None else layer
        return optimise(self.anatomy, rows, at, self.options, self.pad, self._see, origin_ND, **extra)

    def _see(self, step: Step) -> None:
        columns = torch.stack([step.total, step.nll, step.kl, step.decay, step.probability], 1)
        for request, delta, losses in zip(step.requests.tolist(), step.delta_ND, columns, strict=True):
            self.steps.setdefault(request, []).append((delta, losses))

    def trajectory(self, request: int) -> tuple[Tensor, Tensor]:
        """Changes ``[steps, hidden]`` and terms of the loss ``[steps, 5]`` of a request of the last optimisation."""
        deltas, losses = zip(*self.steps[request], strict=True)
        return torch.stack(deltas), torch.stack(losses)

    def commit(self) -> None:
        """Make what was written the weights that the next batch starts from."""
        self.weights.update({layer: self.weight(layer) for layer in self.changes})
        self.changes.clear()
        self._solved.clear()
