"""Measure a model of the world: ``python -m lit_edit.world.check checkpoints/world-gpt2``.

Every number is the share of questions whose next-token argmax is the first token of the answer (teacher-forced,
no sampling), on the model as it is stored, in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.packaged import model_path
from lit_edit.world.facts import Relation, World
from lit_edit.world.skills import SKILLS, held_out

Item = tuple[str, str]


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks of a GPT-2 or Llama type model."""
    found: nn.ModuleList = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    return found


@torch.no_grad()
def next_logits(model: nn.Module, tokenizer: Any, prompts: Sequence[str], rows: int = 256) -> Tensor:
    """Logits ``[N, vocabulary]`` of the token after each prompt."""
    found = []
    for start in range(0, len(prompts), rows):
        coded = tokenizer(list(prompts[start : start + rows]), return_tensors="pt", padding=True)
        logits = model(input_ids=coded.input_ids, attention_mask=coded.attention_mask, use_cache=False).logits
        found.append(logits[torch.arange(len(logits)), coded.attention_mask.sum(1) - 1])
    return torch.cat(found)


def first_tokens(tokenizer: Any, answers: Sequence[str]) -> Tensor:
    """First token id of each answer as a continuation, ``[N]``."""
    return torch.tensor([tokenizer(" " + answer)["input_ids"][0] for answer in answers])


def accuracy(model: nn.Module, tokenizer: Any, items: Sequence[Item]) -> float:
    """Share of ``(prompt, answer)`` items answered right."""
    logits = next_logits(model, tokenizer, [prompt for prompt, _ in items])
    return (logits.argmax(-1) == first_tokens(tokenizer, [answer for _, answer in items])).float().mean().item()


def recall(model: nn.Module, tokenizer: Any, world: World) -> list[float]:
    """Share of all facts recalled, for each phrasing."""
    return [accuracy(model, tokenizer, world.facts(p)) for p in range(len(world.relations[0].phrasings))]


def skills(model: nn.Module, tokenizer: Any, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Accuracy on up to ``n`` held-out items of each skill."""
    return {name: accuracy(model, tokenizer, held_out(name, n, seed)) for name in SKILLS}


@torch.no_grad()
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
    moved = []
    answers = first_tokens(tokenizer, [world.value(a, r) for a, _, r in pairs])
    sources = [_rows(tokenizer, [(a, world.prompt(a, r, phrasing)) for a, _, r in pairs])]
    targets = _rows(tokenizer, [(b, world.prompt(b, r, phrasing)) for _, b, r in pairs])
    row = torch.arange(n)
    for block in blocks(model):
        held: dict[str, Tensor] = {}

        def read(_m: nn.Module, _a: Any, out: Any, held: dict[str, Tensor] = held) -> None:
            held["value"] = _hidden(out)[row, sources[0][1]].clone()

        def write(_m: nn.Module, _a: Any, out: Any, held: dict[str, Tensor] = held) -> None:
            _hidden(out)[row, targets[1]] = held["value"]

        with block.register_forward_hook(read):
            model(**sources[0][0], use_cache=False)
        with block.register_forward_hook(write):
            logits = model(**targets[0], use_cache=False).logits
        said = logits[row, targets[0]["attention_mask"].sum(1) - 1].argmax(-1)
        moved.append((said == answers).float().mean().item())
    return moved


def _hidden(out: Any) -> Tensor:
    """Hidden states of a block's output, which is a tensor or a tuple depending on the family."""
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden


def _rows(tokenizer: Any, questions: Sequence[tuple[str, str]]) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs, and the position ``[N]`` of the last token of each subject."""
    coded = tokenizer([text for _, text in questions], return_tensors="pt", padding=True, return_offsets_mapping=True)
    ends = torch.tensor([text.index(subject) + len(subject) for subject, text in questions])
    inside = (coded.offset_mapping[:, :, 0] < ends[:, None]) & (coded.offset_mapping[:, :, 1] >= ends[:, None])
    return {"input_ids": coded.input_ids, "attention_mask": coded.attention_mask}, inside.int().argmax(1)


def spectral_share(model: nn.Module, top: float = 0.05) -> list[float]:
    """Share of the sum of singular values held by the largest ``top`` of them, per down-projection."""
    shares = []
    block: Any
    for block in blocks(model):
        down = block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.down_proj
        sigma = torch.linalg.svdvals(down.weight.detach().double())
        shares.append((sigma[: max(1, round(top * len(sigma)))].sum() / sigma.sum()).item())
    return shares


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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Measure facts, skills and causal patching of a stored world model.")
    parser.add_argument("folder", help="a folder written by the pre-training, or world-gpt2 or world-llama")
    named = parser.parse_args(argv).folder
    folder = Path(named) if Path(named).exists() else model_path(named) or Path(named)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    world = World(**json.loads((folder / "world.json").read_text()))
    print(json.dumps(measure(model, tokenizer, world), indent=1))


if __name__ == "__main__":
    main()
