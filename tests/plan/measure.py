"""A real run in a process of its own: its memory, its operations or seconds by phase, and what it wrote. Started by planned.measured."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lit_edit import cli, module
from lit_edit.edited import EditedModel
from lit_edit.evaluation import Evaluated

torch.set_num_threads(1)
peaks: dict[str, int] = {}
operations: dict[str, float] = {}
seconds: dict[str, float] = {}
models: list[module.ContinualEditor] = []


PHASES = (
    ("targets", module.ContinualEditor, "_aimed"),
    ("walk", module.ContinualEditor, "backward"),
    ("prepare", EditedModel, "prepare"),
    ("evaluate", Evaluated, "score"),
)


def followed(name: str, owner: Any, method: str) -> None:
    """Note the operations and the live bytes of a method."""
    from torch.utils.flop_counter import FlopCounterMode

    from lit_edit.plan.meter import Live

    inner = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter, Live() as live:
            found = inner(*args, **kwargs)
        operations[name] = operations.get(name, 0) + counter.get_total_flops()
        peaks[name] = max(peaks.get(name, 0), live.peak)
        return found

    setattr(owner, method, outer)


def timed(name: str, owner: Any, method: str) -> None:
    """Note the processor's seconds of a method."""
    inner = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - began

    setattr(owner, method, outer)


def remembered(method: Any) -> Any:
    def outer(self: Any) -> None:
        models.append(self)
        method(self)

    return outer


def most_resident() -> int:
    """Most bytes that this program held; what getrusage tells counts the process that started it as well, if that was larger."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the most memory that a program held")


def size(run: Path, *patterns: str) -> int:
    """Bytes of files, each once however many names it has."""
    found = {path.stat().st_ino: path.stat().st_size for name in patterns for path in run.glob(name) if path.is_file()}
    return sum(found.values())


def state(model: module.ContinualEditor) -> dict[str, int]:
    """Bytes of what the editor keeps."""
    found = {"buffers": sum(value.nbytes for value in model.editor.buffers()), "inverses": 0, "applied": 0}
    kept = getattr(model.editor, "_closed", None)  # protected directions, of editors that have them
    if kept is None:
        kept = {layer: metric.inverse for layer, metric in model.editor._start.items()}
    found["inverses"] += sum(value.untyped_storage().nbytes() for value in kept.values())
    for history in model.editor.earlier.values():
        thin = history._thin
        if thin.factor is None:  # remembered, and nothing solved for since
            continue
        found["applied"] += sum(part._store.untyped_storage().nbytes() for part in (thin.history, thin.applied))
        found["applied"] += thin.factor.nbytes
    return found


if __name__ == "__main__":
    told, what, *arguments = sys.argv[1:]
    sys.argv = ["lit-edit", "fit", *arguments]
    if what in ("counted", "timed"):
        follow = followed if what == "counted" else timed
        for name, owner, method in PHASES:
            follow(name, owner, method)
    else:
        importlib.import_module("transformers.models.llama.modeling_llama")
    module.ContinualEditor.on_train_end = remembered(module.ContinualEditor.on_train_end)
    cli.main(["fit", *arguments])
    run = Path(arguments[arguments.index("--run_dir") + 1])
    found = {
        "resident": most_resident(),
        "peaks": peaks,
        "operations": operations,
        "seconds": seconds,
        **state(models[0]),
        "journal": size(run, "journal.jsonl", "journal/*"),
        "newest": size(run, "checkpoints/last.ckpt"),
        "checkpoints": size(run, "checkpoints/*"),
        "logs": size(run, "csv/**/*", "tensorboard/**/*"),
    }
    Path(told).write_text(json.dumps(found), encoding="utf-8")
