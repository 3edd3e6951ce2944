"""Numbers that are none, put into a stream one batch and one stage at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from methods import state

from lit_edit import keys, workbench
from lit_edit.anatomy import Anatomy
from lit_edit.delta import Delta
from lit_edit.editors import LocateThenEdit, finetune
from lit_edit.guards import Guard
from lit_edit.mend.network import HyperNetwork
from lit_edit.module import ContinualEditor
from lit_edit.passes import gradients


@dataclass
class Poison:
    """What is put in where, while it is :attr:`active`.

    Args:
        faults: stage and number by batch of the stream; a function instead of a number makes what is raised there.
    """

    faults: dict[int, tuple[str, Any]]
    active: tuple[str, Any] | None = None
    fired: set[tuple[str, Any]] = field(default_factory=set)

    def at(self, stage: str) -> float | None:
        """The number to put in at a stage, if it is its time."""
        if self.active is None or self.active[0] != stage:
            return None
        self.fired.add(self.active)
        if callable(self.active[1]):
            raise self.active[1]()
        return self.active[1]

    def into(self, stage: str, value: torch.Tensor) -> torch.Tensor:
        """A tensor with one number exchanged, if it is its time."""
        bad = self.at(stage)
        if bad is None or not value.numel():
            return value
        value = value.detach().clone(memory_format=torch.contiguous_format)
        value.view(-1)[value.numel() // 2] = bad
        return value

    def delta(self, stage: str, delta: Delta) -> Delta:
        """The same for a change."""
        if delta.is_low_rank:
            left, right = delta.factors
            return Delta.low_rank(self.into(stage, left), right)
        return Delta.from_dense(self.into(stage, delta.dense().contiguous()))

    def buffers(self, part: torch.nn.Module, stage: str, before: dict[str, torch.Tensor]) -> None:
        """The same for the state that has just changed."""
        for name, value in part.named_buffers():
            if value is not before.get(name) and value.is_floating_point() and value.numel():
                *path, leaf = name.split(".")
                part.get_submodule(".".join(path))._buffers[leaf] = self.into(stage, value)
                break


class Leaky(Guard):
    """Writes what it is given, and counts in a buffer."""

    def __init__(self, poison: Poison) -> None:
        super().__init__()
        self.poison = poison
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, layer, delta, weight):
        self.calls = self.poison.into("guard state", (self.calls + 1)[None])[0]
        larger = self.poison.at("budget")
        if larger is not None:
            left, right = delta.factors if delta.is_low_rank else (delta.dense(), torch.eye(delta.shape[1]).to(delta.dense()))
            return Delta.low_rank(larger * left, right)
        return self.poison.delta("guard", delta)


class Watch(Callback):
    """Switches the poison on and off, and notes the state around every batch."""

    def __init__(self, poison: Poison) -> None:
        self.poison, self.around, self._before = poison, [], {}

    def on_train_start(self, trainer, pl_module):
        pl_module.listen(self.hear)

    def hear(self, phase, done, total):
        if phase == "requests" and done > 1:
            self.poison.active = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = state(pl_module)
        self.poison.active = self.poison.faults.get(batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.poison.active = None
        self.around.append((self._before, state(pl_module)))


@contextmanager
def injected(poison: Poison, module: ContinualEditor) -> Iterator[None]:
    """Put the numbers into the library's own functions, inside the block."""
    method = module.editor
    with pytest.MonkeyPatch.context() as patch:

        def wrap(owner: Any, name: str, change: Callable[..., Any]) -> None:
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *args, **kwargs: change(original(*args, **kwargs)))

        def targets(found):
            found.values_ND.copy_(poison.into("targets", found.values_ND))
            return found

        def grads(found):  # everywhere: most tokens of a row are not looked at
            bad = poison.at("gradients")
            return found if bad is None else (torch.full_like(found[0], bad), *found[1:])

        def captured(found):
            tokens, loss = found
            last = max(tokens)
            inputs = poison.into("inputs", tokens[last].inputs_TI)
            return {**tokens, last: gradients.Captured(inputs, tokens[last].gradients_TO)}, loss

        def singular(found):
            if poison.at("singular") is not None:
                raise torch.linalg.LinAlgError("linalg.cholesky: the input is not positive-definite")
            return poison.delta("solve", found)

        def trained(found):
            name = max(found)
            return {**found, name: poison.into("solve", found[name])}

        wrap(workbench, "optimise", targets)
        wrap(keys._Reading, "rows", lambda found: (poison.into("keys", found[0]), poison.into("values", found[1])))
        wrap(keys._Reading, "values", lambda found: poison.into("values", found))
        wrap(Anatomy, "pull_back", lambda found: poison.into("residuals", found))
        wrap(torch.autograd, "grad", grads)
        wrap(gradients.Answers, "losses", lambda found: found if (bad := poison.at("loss")) is None else found * bad)
        wrap(gradients, "_capture", captured)
        wrap(HyperNetwork, "delta", singular)
        wrap(finetune, "descend", trained)
        if hasattr(method, "solve"):
            wrap(method, "solve", singular)
        step = "settle" if isinstance(method, LocateThenEdit) else "change"
        original = getattr(method, step)

        def settle(*args, **kwargs):
            before = dict(method.named_buffers())
            original(*args, **kwargs)
            poison.buffers(method, "state", before)

        patch.setattr(method, step, settle)
        yield
