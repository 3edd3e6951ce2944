"""Measure a reference model: ``python -m lit_edit.reference.measure FOLDER --data DATA``.

The report, ``report.json`` and ``report.md`` beside the weights, says which true facts the model knows, how well it reads
general text that it was not trained on, whether it has its skills, and at which layers editing acts. It is measured on the
weights as they are stored, in float32, without sampling.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError, exit_code
from lit_edit.models.identity import load_pretrained
from lit_edit.pretraining.measures import accuracy, in_eval_mode, spectral_share
from lit_edit.probes.perplexity import Perplexity
from lit_edit.prompts import Encoder
from lit_edit.reference.facts import Knowledge
from lit_edit.reference.layers import measure_layers
from lit_edit.reference.recall import measure_recall
from lit_edit.reference.report import markdown
from lit_edit.scoring import Scorer
from lit_edit.store import write_atomically
from lit_edit.world.skills import SKILLS, held_out

LEARNED = "learned.json"
"""What the model was trained on, beside its weights."""
DOCUMENTS = 20
"""Perplexity is measured on so many documents of the text, from its start."""


def measure(
    model: nn.Module, tokenizer: Any, knowledge: Knowledge, text: Path | None, most: int | None = 200
) -> dict[str, Any]:
    """Everything that the report says, in plain Python.

    Args:
        model: a GPT-2 or Llama type model.
        tokenizer: its tokenizer.
        knowledge: what it was to learn.
        text: general text, none of it trained on; ``None`` leaves perplexity out.
        most: facts asked for of each relation; ``None`` asks for all.
    """
    anatomy = Anatomy.of(model)
    encoder = Encoder(tokenizer, anatomy.positions)
    scorer = Scorer(anatomy, encoder)
    found = measure_recall(scorer, knowledge, most)
    layers = measure_layers(model, tokenizer, found.known)
    with in_eval_mode(model):
        skills = {name: accuracy(model, tokenizer, held_out(name, 200)) for name in SKILLS}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": len(knowledge.facts),
        "subjects": len(knowledge.subjects()),
        "recall": found.told(),
        "perplexity": None if text is None else _perplexity(scorer, text),
        "skills": skills,
        "layers": None if layers is None else asdict(layers),
        "top5_sigma_share": spectral_share(model),
    }


def _perplexity(scorer: Scorer, text: Path) -> dict[str, Any]:
    probe = Perplexity(str(text), separator="<|doc|>", limit=DOCUMENTS)
    items = probe.items()
    rows = probe.measure(scorer, items)
    numbers = probe.summarise(rows)
    return {"text": text.name, "documents": len(items), "tokens": int(rows[:, 1].sum()), **numbers}


def write(folder: Path, report: dict[str, Any]) -> str:
    """``report.json`` and ``report.md`` in a folder; returns the latter."""
    table = markdown(report)
    write_atomically(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    write_atomically(folder / "report.md", table.encode())
    return table


def measure_folder(
    folder: Path, knowledge: Knowledge, text: Path | None, most: int | None = 200, **about: Any
) -> tuple[dict[str, Any], str]:
    """Measure the model in a folder, write the report beside it and return it, with its table.

    Args:
        folder: a Hugging Face folder.
        knowledge: what the model was to learn.
        text: see :func:`measure`.
        most: see :func:`measure`.
        about: what else the report is to say.
    """
    model, tokenizer = load_pretrained(str(folder), None, torch.float32)
    report = {**about, **measure(model, tokenizer, knowledge, text, most)}
    return report, write(folder, report)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a stored model again and print the table.

    Raises:
        EditError: if the folder holds no reference model, or its data cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_edit.reference.measure", description="Measure a reference model.")
    parser.add_argument("folder", type=Path, help="a folder written by lit-edit pretrain-facts")
    parser.add_argument("--data", type=Path, required=True, help="the folder with facts and text that it was trained on")
    parser.add_argument("--most", type=int, default=200, help="facts asked for of each relation; 0 asks for all")
    given = parser.parse_args(argv)
    disable_progress_bar()  # what is printed is the table
    try:
        learned = json.loads((given.folder / LEARNED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EditError(f"{given.folder} holds no {LEARNED}, so it was not written by lit-edit pretrain-facts") from error
    names = ("relations", "edited", "held_out")
    knowledge = Knowledge.read(
        given.data / learned["facts"], given.data / learned["templates"], **{name: learned[name] for name in names}
    )
    text = given.data / learned["held_out_text"] if learned["held_out_text"] else None
    about = {name: learned[name] for name in ("steps", "of")}
    print(measure_folder(given.folder, knowledge, text, given.most or None, **about)[1])


if __name__ == "__main__":
    sys.exit(exit_code("python -m lit_edit.reference.measure", main))
