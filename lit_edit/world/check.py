"""Measure a model of the world: ``python -m lit_edit.world.check checkpoints/world-gpt2``.

Every number is the share of questions whose next-token argmax is the first token of the answer (teacher-forced,
no sampling), on the model as it is stored, in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from lit_edit.errors import exit_code
from lit_edit.models.identity import load_pretrained
from lit_edit.options.packaged import model_path
from lit_edit.pretraining.measures import Questions, accuracy, blocks, first_tokens, moved_by_patching, spectral_share
from lit_edit.world.facts import Relation, World
from lit_edit.world.skills import SKILLS, held_out


def recall(model: nn.Module, tokenizer: Any, world: World) -> list[float]:
    """Share of all facts recalled, for each phrasing."""
    return [accuracy(model, tokenizer, world.facts(p)) for p in range(len(world.relations[0].phrasings))]


def skills(model: nn.Module, tokenizer: Any, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Accuracy on up to ``n`` held-out items of each skill."""
    return {name: accuracy(model, tokenizer, held_out(name, n, seed)) for name in SKILLS}


def patching(model: nn.Module, tokenizer: Any, world: World, n: int = 300, seed: int = 0, phrasing: int = 0) -> list[float]:
    """How often a block output, moved from one person to another, takes the answer with it; one number per block.

    The output of block ``l`` at the last token of person A's name replaces that of person B in the same question, where
    A and B have different answers. Counted: the answer becomes A's.
    """
    rng = Random(f"patch-{seed}")
    pairs: list[tuple[str, str, Relation]] = []
    while len(pairs) < n:
        relation = rng.choice(world.relations)
        a, b = rng.sample(world.subjects, 2)
        if world.value(a, relation) != world.value(b, relation):
            pairs.append((a, b, relation))
    answers = first_tokens(tokenizer, [world.value(a, r) for a, _, r in pairs])
    sources = _questions(tokenizer, [(a, world.prompt(a, r, phrasing)) for a, _, r in pairs])
    targets = _questions(tokenizer, [(b, world.prompt(b, r, phrasing)) for _, b, r in pairs])
    return [moved_by_patching(model, [block], sources, targets, answers) for block in blocks(model)]


def _questions(tokenizer: Any, asked: Sequence[tuple[str, str]]) -> Questions:
    """Prompts as model inputs, from pairs of a subject and a prompt about it."""
    return Questions.of(tokenizer, [(text, text.index(subject) + len(subject)) for subject, text in asked])


def measure(model: nn.Module, tokenizer: Any, world: World) -> dict[str, Any]:
    """All of the above, rounded, in plain Python."""
    model.eval()
    scores = skills(model, tokenizer)
    return {
        "recall": [round(x, 4) for x in recall(model, tokenizer, world)],
        "skills": {name: round(x, 3) for name, x in scores.items()} | {"mean": round(sum(scores.values()) / len(scores), 4)},
        "patching": [round(x, 3) for x in patching(model, tokenizer, world)],
        "top5_sigma_share": [round(x, 3) for x in spectral_share(model)],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measurements of a stored model as JSON."""
    parser = argparse.ArgumentParser(description="Measure facts, skills and causal patching of a stored world model.")
    parser.add_argument("folder", help="a folder written by the pre-training, or world-gpt2 or world-llama")
    named = parser.parse_args(argv).folder
    disable_progress_bar()  # what is printed is the measurements
    model, tokenizer = load_pretrained(named, None, torch.float32)
    folder = Path(named) if Path(named).exists() else model_path(named) or Path(named)
    world = World(**json.loads((folder / "world.json").read_text()))
    print(json.dumps(measure(model, tokenizer, world), indent=1))


if __name__ == "__main__":
    sys.exit(exit_code("python -m lit_edit.world.check", main))
