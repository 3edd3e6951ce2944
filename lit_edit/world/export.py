"""Write a trained model as an ordinary Hugging Face folder with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lit_edit.world import check
from lit_edit.world.skills import SKILLS

CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A {parameters:,}-parameter {family} model of a small synthetic world ({people} people, {relations} relations, {skills}
skills), made to try out knowledge editing on a laptop. It knows nothing of the real world and is of no use outside the project.

Made by `lit-edit pretrain --config configs/{config}`, {steps} steps. Settings that differ from that file
are given on the command line; all of them are listed below. No data from outside: the world and its text are generated
from seeds. Licence: same licence as the project.

## Measured on the stored weights
`python -m lit_edit.world.check checkpoints/{name}` repeats these numbers.

```json
{measured}
```
`recall`: share of all facts recalled, per phrasing. `skills`: accuracy on held-out items. `patching`: how often the output
of a block at the last token of a name, put into another person's question, moves the answer, per block.

## Settings
```json
{settings}
```
Training-time tricks (auxiliary heads, restricted attention, dropped writers, biographies) are described in
`lit_edit/pretraining/module.py`; none of them is part of the stored model.
"""


def export(folder: Path, net: Any, data: Any, model_settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Save weights (half precision), tokenizer, ``world.json`` and the card; returns the measurements.

    The numbers on the card are taken from the stored weights, read back, not from the ones in memory.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = data.world
    folder.mkdir(parents=True, exist_ok=True)
    dtype = next(net.parameters()).dtype
    net.to(torch.float16).save_pretrained(folder)
    net.to(dtype)
    data.tokenizer.save_pretrained(folder)
    identity = {"seed": world.seed, "people": world.people, "held_back": world.held_back, "names": world.names}
    (folder / "world.json").write_text(json.dumps(identity, indent=1) + "\n")
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    measured = check.measure(stored, AutoTokenizer.from_pretrained(folder), world)
    data_settings = {k: getattr(data, k) for k in ("seed", "batches", "documents", "row_length", "skills", "plain", "hidden")}
    model_settings = {k: v for k, v in model_settings.items() if not k.startswith("_")}
    settings = {"seed_everything": torch.initial_seed(), "model": model_settings, "data": data_settings, "world": identity}
    (folder / "README.md").write_text(
        CARD.format(
            name=folder.name,
            family=model_settings["family"],
            config="pretrain_world.yaml",
            parameters=measured["parameters"],
            people=world.people,
            relations=len(world.relations),
            skills=len(SKILLS),
            steps=steps,
            measured=json.dumps(measured, indent=1),
            settings=json.dumps(settings, indent=1, default=str),
        )
    )
    return measured
