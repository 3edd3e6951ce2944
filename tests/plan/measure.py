"""A real run in a process of its own: how its memory grew, by phase, and what it wrote. Run by planned.measured."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import transformers.models.gpt2.modeling_gpt2  # noqa: E402, F401 (libraries are no part of a run's memory)
import transformers.models.llama.modeling_llama  # noqa: E402, F401
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lit_edit import cli, module  # noqa: E402
from lit_edit.edited import EditedModel  # noqa: E402
from lit_edit.evaluation import Evaluated  # noqa: E402
from lit_edit.plan.meter import Live  # noqa: E402

peaks: dict[str, int] = {}
operations: dict[str, float] = {}
state: dict[str, int] = {}


def followed(name: str, owner: Any, method: str) -> None:
    """Note the operations and the live bytes of a method."""
    inner = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if COUNTING:
            with FlopCounterMode(display=False) as counter:
                found = inner(*args, **kwargs)
            operations[name] = operations.get(name, 0) + counter.get_total_flops()
            return found
        with Live() as live:
            found = inner(*args, **kwargs)
        peaks[name] = max(peaks.get(name, 0), live.peak)
        return found

    setattr(owner, method, outer)


told, what, *arguments = sys.argv[1:]
COUNTING = what == "operations"
if what != "rss":
    followed("targets", module.ContinualEditor, "_aimed")
    followed("walk", module.ContinualEditor, "backward")
    followed("prepare", EditedModel, "prepare")
    followed("evaluate", Evaluated, "score")

models: list[module.ContinualEditor] = []
end = module.ContinualEditor.on_train_end


def noted(self: Any) -> None:
    models.append(self)
    end(self)


module.ContinualEditor.on_train_end = noted


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


before = rss()
sys.argv = ["lit-edit", "fit", *arguments]
if what == "rss":
    from lit_edit.plan import machine

    before = machine.resident()
cli.main(["fit", *arguments])
(model,) = models
buffers = sum(value.numel() * value.element_size() for value in model.editor.buffers())
inverses = 0
for metric in getattr(model.editor, "_start", {}).values():
    found = metric.inverse if metric.inverse is not None else metric.factored.factor
    inverses += found.numel() * found.element_size()
thin = 0
for history in getattr(model.editor, "earlier", {}).values():
    if history._thin is not None and history._thin.applied is not None:
        for part in (history._thin.history._store, history._thin.applied._store, history._thin.factor):
            thin += part.untyped_storage().nbytes()
run = Path(arguments[arguments.index("--run_dir") + 1])


def sizes(pattern: str) -> int:
    seen = {}
    for path in run.glob(pattern):
        if path.is_file():
            seen[path.stat().st_ino] = path.stat().st_size
    return sum(seen.values())


Path(told).write_text(
    json.dumps(
        {
            "grown": rss() - before,
            "peaks": peaks,
            "operations": operations,
            "buffers": buffers,
            "inverses": inverses,
            "thin": thin,
            "edits": model.edits,
            "journal": sizes("journal.jsonl") + sizes("journal/*"),
            "records": sizes("journal.jsonl"),
            "checkpoints": sizes("checkpoints/*"),
            "logs": sizes("csv/**/*") + sizes("tensorboard/**/*"),
        }
    ),
    encoding="utf-8",
)
