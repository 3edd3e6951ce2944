"""Streams over a tiny model into which numbers that are none are put, one batch and one stage at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stream import facts

from lit_edit.boundary import random_state
from lit_edit.callbacks import JournalKeeper
from lit_edit.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.data import EditStream
from lit_edit.delta import Delta
from lit_edit.editors import (
    EMMET,
    ENCORE,
    FT,
    FTL,
    FTM,
    MEMIT,
    MEND,
    NSE,
    ROME,
    AlphaEdit,
    BetaEdit,
    DeltaEdit,
    Editor,
    EvoEdit,
    LocateThenEdit,
    LyapLock,
    RLSEdit,
    UltraEdit,
)
from lit_edit.errors import MalformedRecord
from lit_edit.guards import Guard
from lit_edit.module import ContinualEditor
from lit_edit.store import fingerprint
from lit_edit.targets import TargetOptions

METHODS: dict[str, Callable[[Path], Editor]] = {
    "AlphaEdit": lambda tiny: AlphaEdit(threshold=0.5, ridge=1.0),
    "BetaEdit": lambda tiny: BetaEdit(threshold=0.5, lam=1.0, ridge=1.0, refresh=5, limit=None),
    "DeltaEdit": lambda tiny: DeltaEdit(threshold=0.5, ridge=1.0, warmup=2, var=0.1, space=0.5),
    "EMMET": lambda tiny: EMMET(lam=10.0),
    "ENCORE": lambda tiny: ENCORE(lam=10.0, ridge=1.0),
    "EvoEdit": lambda tiny: EvoEdit(threshold=0.5, ridge=1.0),
    "FT": lambda tiny: FT(lr=1e-3, steps=2),
    "FTL": lambda tiny: FTL(epsilon=1e-3, lr=1e-3, steps=2),
    "FTM": lambda tiny: FTM(lr=1e-3, steps=2, average="tokens"),
    "LyapLock": lambda tiny: LyapLock(lam=10.0),
    "MEMIT": lambda tiny: MEMIT(lam=10.0, history=True),
    "MEND": lambda tiny: MEND(str(tiny / "mend"), scale=100.0),
    "NSE": lambda tiny: NSE(lam=10.0, alpha=0.0, upper_bound=1e6, neuron_threshold=0.8),
    "RLSEdit": lambda tiny: RLSEdit(lam=10.0, ridge=1.0),
    "ROME": lambda tiny: ROME(),
    "UltraEdit": lambda tiny: UltraEdit(lr=1e-3),
}
"""Every editor, in the order of their names."""

LOCATING = [name for name in METHODS if name not in ("FT", "FTL", "FTM", "MEND", "UltraEdit")]
"""Editors with targets, keys and residuals."""

IN_ORDER = ("DeltaEdit", "ROME")
"""Editors that refuse a request, and not the batch."""

STATELESS = ("EMMET", "FT", "FTL", "FTM", "MEND", "ROME")
"""Editors that carry nothing from batch to batch."""

TARGETS = TargetOptions(steps=2, contexts=0)


def editor(tiny: Path, method: str | Editor, guards: tuple[Guard, ...] = (), **options: Any) -> ContinualEditor:
    """The module for one editor."""
    built = METHODS[method](tiny) if isinstance(method, str) else method
    settings = {
        "layers": [0] if isinstance(built, ROME) else [0, 1],
        "guards": list(guards),
        "targets": TARGETS,
        "moment_tokens": 600,
        "cache_dir": str(tiny / "cache"),
        **options,
    }
    return ContinualEditor(str(tiny / "model"), built, **settings)


def fit(
    module: ContinualEditor,
    folder: Path,
    rows: list[dict[str, Any]],
    callbacks: tuple[Callback, ...] = (),
    batch_size: int = 2,
    ckpt_path: str | None = None,
    **options: Any,
) -> L.Trainer:
    """Edit a stream of facts; the journal and the checkpoints are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0, **options}
    trainer = L.Trainer(
        default_root_dir=str(folder),
        plugins=[SafetensorsCheckpointIO()],
        callbacks=[JournalKeeper(str(folder), factors=False), *callbacks],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in callbacks),
        **settings,
    )
    stream = EditStream(path=str(folder / "facts.jsonl"), batch_size=batch_size, probes=[])
    trainer.fit(module, datamodule=stream, ckpt_path=ckpt_path)
    return trainer


def state(module: ContinualEditor) -> dict[str, str]:
    """Hashes of everything that a batch that is undone has to leave alone."""
    parts = {"editor": module.editor, **{f"guard {i}": guard for i, guard in enumerate(module.guards)}}
    random = random_state()
    return {
        "masters": fingerprint({str(layer): module.master(layer) for layer in module.layers}),
        "shown": fingerprint({str(layer): module.anatomy.weight(layer) for layer in module.layers}),
        **{name: fingerprint(dict(part.named_buffers())) for name, part in parts.items()},
        "torch": fingerprint({"state": random["torch"]}),
        "python": str(hash(random["python"])),
    }


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
    from lit_edit import descent, gradients, keys, workbench
    from lit_edit.anatomy import Anatomy
    from lit_edit.mend.network import HyperNetwork

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

        wrap(workbench, "optimise", targets)
        wrap(keys._Reading, "rows", lambda found: (poison.into("keys", found[0]), poison.into("values", found[1])))
        wrap(keys._Reading, "values", lambda found: poison.into("values", found))
        wrap(Anatomy, "pull_back", lambda found: poison.into("residuals", found))
        wrap(torch.autograd, "grad", grads)
        wrap(gradients.Answers, "losses", lambda found: found if (bad := poison.at("loss")) is None else found * bad)
        wrap(gradients, "_capture", captured)
        wrap(HyperNetwork, "delta", singular)
        if hasattr(method, "solve"):
            wrap(method, "solve", singular)
        from lit_edit.editors import finetune

        def trained(found):
            name = max(found)
            return {**found, name: poison.into("solve", found[name].contiguous())}

        wrap(finetune, "descend", trained)
        assert descent.descend is not finetune.descend
        step = "settle" if isinstance(method, LocateThenEdit) else "change"
        original = getattr(method, step)

        def settle(*args, **kwargs):
            before = dict(method.named_buffers())
            original(*args, **kwargs)
            poison.buffers(method, "state", before)

        patch.setattr(method, step, settle)
        yield


def leave_out(module: ContinualEditor, cases: set[str]) -> None:
    """Make an editor that takes requests in order find some of them unusable, so that batches stay what they were."""
    rows = module.editor.rows

    def without(encoder, request, contexts):
        if request.case_id in cases:
            raise MalformedRecord("prompt", "is left out")
        return rows(encoder, request, contexts)

    module.editor.rows = without


__all__ = ["METHODS", "Leaky", "Poison", "Watch", "editor", "facts", "fit", "injected", "leave_out", "state"]
