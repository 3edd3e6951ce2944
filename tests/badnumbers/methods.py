"""Every editor over a small stream on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from lit_edit.callbacks import JournalKeeper
from lit_edit.data import EditStream
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
    LyapLock,
    RLSEdit,
    UltraEdit,
)
from lit_edit.errors import MalformedRecord
from lit_edit.guards import Guard
from lit_edit.module import ContinualEditor
from lit_edit.runs.boundary import random_state
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
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
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        **settings,
    )
    stream = EditStream(path=str(folder / "facts.jsonl"), batch_size=batch_size, probes=[])
    trainer.fit(module, datamodule=stream, ckpt_path=ckpt_path)
    return trainer


def stages(method: str) -> list[str]:
    """Where numbers go wrong in an editor; see :func:`poison.injected`."""
    if method in LOCATING:
        own = ["targets", "keys", "values", "residuals", "singular"]
    elif method.startswith("FT"):
        own = ["gradients", "loss"]
    else:
        own = ["inputs", "gradients", "loss", "singular"]
    return [*own, "solve", "guard", *(["state"] if method not in STATELESS else []), "guard state", "budget"]


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


def leave_out(module: ContinualEditor, cases: set[str]) -> None:
    """Make an editor that takes requests in order find some of them unusable, so that batches stay what they were."""
    rows = module.editor.rows

    def without(encoder, request, contexts):
        if request.case_id in cases:
            raise MalformedRecord("prompt", "is left out")
        return rows(encoder, request, contexts)

    module.editor.rows = without
