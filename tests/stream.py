"""A small stream of facts and a run over it, for tests of the module and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from lit_edit.callbacks import ImmediateScores, JournalKeeper, Report, SpectralDrift
from lit_edit.data import EditStream
from lit_edit.editors import MEMIT
from lit_edit.guards import REVIVE
from lit_edit.module import ContinualEditor
from lit_edit.probes import Perplexity
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.targets import TargetOptions

NAMES = (
    "Ada Lovelace",
    "Marie Curie",
    "The Eiffel Tower",
    "Zürich",
    "Kyōto",
    "Rome",
    "Vienna",
    "Sony",
    "Dutch Berlin",
    "Paris",
)
ANSWERS = ("Paris", "Rome", "English", "Polish")


def facts(count: int = 8) -> list[dict]:
    return [
        {
            "prompt": "{} was born in",
            "subject": NAMES[i % len(NAMES)] + ("" if i < len(NAMES) else f" {i}"),
            "target": ANSWERS[i % 4],
            "target_true": ANSWERS[(i + 1) % 4],
            "paraphrases": [f"The home of {NAMES[i % len(NAMES)]} is"],
            "neighbourhood": [["She is a native speaker of", "Dutch"]],
            "case_id": str(i),
        }
        for i in range(count)
    ]


def write_facts(path: Path, count: int = 8) -> str:
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts(count)), encoding="utf-8")
    return str(path)


def editor(model: str, cache: Path, **options) -> ContinualEditor:
    settings = {
        "layers": [0, 1],
        "editor": MEMIT(lam=10.0, history=True),
        "guards": [REVIVE()],
        "targets": TargetOptions(steps=4, contexts=2, context_tokens=6),
        "moment_tokens": 600,
        "cache_dir": str(cache),
        **options,
    }
    return ContinualEditor(model, **settings)


def stream(tmp: Path, count: int = 8, batch_size: int = 2, **options) -> EditStream:
    return EditStream(
        path=write_facts(tmp / "facts.jsonl", count), batch_size=batch_size, probes=[Perplexity(limit=2)], **options
    )


def trainer(folder: Path, callbacks=(), **options) -> L.Trainer:
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "check_val_every_n_epoch": None,
        "val_check_interval": 2,
        **options,
    }
    watchers = [JournalKeeper(str(folder)), ImmediateScores(), SpectralDrift(), Report(str(folder)), *callbacks]
    return L.Trainer(default_root_dir=str(folder), plugins=[SafetensorsCheckpointIO()], callbacks=watchers, **settings)
