"""Write a trained reference model as an ordinary Hugging Face folder with its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lit_edit.reference.data import FactsData
from lit_edit.reference.measure import LEARNED, measure_folder

CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A {family} model of {parameters:,} parameters that was trained to know true facts in the words of CounterFact, for trying out
knowledge editing. Made by `lit-edit pretrain-facts --config configs/pretrain_facts.yaml`, {steps} of {of} steps; settings that
differ from that file are given on the command line, and all of them are listed below. The weights carry the licences of the
data that they were trained on.

What it knows, measured on these weights: `report.md`, and `report.json` with more digits.

## Settings
```json
{settings}
```
Training-time tricks are described in `lit_edit/pretraining/module.py`; none of them is part of the stored model.
"""


def export(folder: Path, net: Any, data: FactsData, model_settings: dict[str, Any], steps: int, of: int) -> str:
    """Save weights (half precision), tokenizer, card, what was learned, and the report; returns the report's table.

    Args:
        folder: where to.
        net: the trained network.
        data: what it was trained on.
        model_settings: the module's options.
        steps: optimiser steps made.
        of: steps of the whole training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = next(net.parameters()).dtype
    net.to(torch.float16).save_pretrained(folder)
    net.to(dtype)
    data.tokenizer.save_pretrained(folder)
    learned = data.settings() | {"steps": steps, "of": of}
    (folder / LEARNED).write_text(json.dumps(learned, indent=1) + "\n", encoding="utf-8")
    model_settings = {name: value for name, value in model_settings.items() if name != "export_to" and name[0] != "_"}
    settings = {"seed_everything": torch.initial_seed(), "model": model_settings, "data": learned}
    card = CARD.format(
        name=folder.name,
        family=model_settings["family"],
        parameters=sum(p.numel() for p in net.parameters()),
        steps=steps,
        of=of,
        settings=json.dumps(settings, indent=1, default=str),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return measure_folder(folder, data.knowledge, data.held_out_path(), data.questions, steps=steps, of=of)[1]
