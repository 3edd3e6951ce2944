"""A stream of batches through a workbench on a tiny model, without a trainer."""

from __future__ import annotations

import torch

from lit_edit.anatomy import Anatomy
from lit_edit.moments import SecondMoment
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench
from tests.tiny import normal, tiny_model, tiny_tokenizer

CONTEXTS = ("I was there. {}", "The old city is seen and so on. {}")
ANSWERS = ("Berlin", "Sony", "Dutch", "Rome", "Paris", "Polish")
SUBJECTS = ("France", "Ada Lovelace", "Marie Curie", "Kyōto", "Zürich", "The Eiffel Tower", "Vienna", "Germany", "Dutch")


def rows_of(count: int):
    """Rows of some requests with subjects of their own, the answer right behind: a random model passes on little else."""
    encoder = Encoder(tiny_tokenizer())
    names = [SUBJECTS[i % len(SUBJECTS)] + f" {i}" * (i >= len(SUBJECTS)) for i in range(count)]
    return [encoder.rows(EditRequest("She was seen in {}", n, ANSWERS[i % 6]), CONTEXTS) for i, n in enumerate(names)]


class Bed:
    """A tiny model, an editor prepared on it, and the weights that its batches have left.

    Args:
        editor: the editor.
        family: of the model.
        layers: edited blocks.
        guards: on every change.
        options: of the targets.
    """

    def __init__(self, editor, family="gpt2", layers=(0, 1), guards=(), **options):
        self.anatomy, self.editor, self.layers, self.guards = Anatomy.of(tiny_model(family)), editor, layers, guards
        self.original = {layer: self.anatomy.weight(layer).clone() for layer in layers}
        self.weights = dict(self.original)
        self.options = TargetOptions(**{"steps": 6, "lr": 0.3, "clamp": 4.0, "contexts": 2, **options})
        for layer in layers:
            editor.allocate(layer, self.anatomy.d_model, self.anatomy.d_inner)
            editor.prepare(layer, self.original[layer], moment(self.anatomy.d_inner, layer))

    def bench(self, **options) -> Workbench:
        """A workbench on the weights so far."""
        bench = Workbench(
            anatomy=self.anatomy,
            layers=self.layers,
            guards=self.guards,
            master=lambda layer: self.weights[layer],
            original=lambda layer: self.original[layer],
            options=self.options,
            pad=0,
            stateful=[self.editor],
            **options,
        )
        bench.clear()
        return bench

    def batch(self, rows, **options) -> Workbench:
        """Edit one batch and keep the weights."""
        bench = self.bench(**options)
        self.editor.change(bench, rows, self.editor.aim(bench, rows))
        self.weights = {layer: bench.weight(layer) for layer in self.layers}
        return bench


def moment(width: int, seed: int = 0) -> SecondMoment:
    """Eigenvalues over four decades, so that a threshold within them protects some directions."""
    basis = torch.linalg.qr(normal(width, width, seed=seed + 50)).Q
    values = torch.logspace(-4, 0, width, dtype=torch.float64)
    return SecondMoment(((basis * values) @ basis.T).float(), 100)
