"""Fakes and files for the tests of probes."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy
import torch
from tiny import tiny_model, tiny_tokenizer

from lit_edit.anatomy import Anatomy
from lit_edit.prompts import Encoder
from lit_edit.scoring import AnswerScores, Scorer


def scorer(family: str = "gpt2", bos: bool = False, positions: int = 512, **options) -> Scorer:
    """A scorer over a tiny random model with room for long prompts."""
    name = "n_positions" if family == "gpt2" else "max_position_embeddings"
    anatomy = Anatomy.of(tiny_model(family, **{name: positions}))
    return Scorer(anatomy, Encoder(tiny_tokenizer(bos), anatomy.positions), **options)


class Prescribed:
    """A scorer whose model says and prefers what it is told to.

    Args:
        said: continuation of every prompt, by a part of the prompt.
        liked: the likeliest answer of every prompt, by a part of the prompt.
    """

    def __init__(self, said: dict[str, str], liked: dict[str, str] | None = None) -> None:
        real = scorer()
        self.anatomy, self.encoder = real.anatomy, real.encoder
        self.said, self.liked = said, liked or {}
        self.prompts: list[str] = []
        self.tokens = 0

    def generate(self, prompts, tokens, until=()):
        self.prompts += prompts
        self.tokens = tokens
        return [next(text for part, text in self.said.items() if part in prompt) for prompt in prompts]

    def answers(self, pairs):
        nll = [
            float(answer != next((text for part, text in self.liked.items() if part in prompt), None))
            for prompt, answer in pairs
        ]
        ones = ((0,),) * len(pairs)
        return AnswerScores(torch.tensor(nll), torch.ones(len(pairs)).bool(), torch.ones(len(pairs)), ones, ones)


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def measured(probe, with_scorer, batch: int = 64) -> torch.Tensor:
    items = probe.items()
    return torch.cat([probe.measure(with_scorer, items[i : i + batch]) for i in range(0, len(items), batch)])


def numbers(probe, with_scorer, batch: int = 64) -> dict[str, float]:
    return probe.summarise(measured(probe, with_scorer, batch))


def state_of(with_scorer: Scorer) -> dict[str, object]:
    """Everything that an evaluation must leave alone, hashed where it is large."""
    model, tokenizer = with_scorer.anatomy.model, with_scorer.encoder.tokenizer
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        weights.update(name.encode() + value.contiguous().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "torch": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy": hashlib.sha256(numpy.random.get_state()[1].tobytes()).hexdigest(),
        "python": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "generation": model.generation_config.to_json_string(),
        "tokenizer": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token, len(tokenizer)),
        "backend": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }
