"""Pre-training of the embedded model: people and skills of a world as data, and what is true of the people.

How a small model comes to store facts where an editor can find them is told in :mod:`lit_edit.pretraining.module`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_edit.pretraining.measures import Item, accuracy
from lit_edit.pretraining.module import Pretrainer, PretrainingData
from lit_edit.pretraining.rows import pack
from lit_edit.world.facts import World
from lit_edit.world.skills import SKILLS, held_out
from lit_edit.world.text import training_documents
from lit_edit.world.tokenizer import build_tokenizer


class WorldData(PretrainingData):
    """Text of a world, generated while training.

    Args:
        world_seed: seed of the world itself.
        people: how many people live in it.
        held_back: how many of them editing never touches.
        names: size of the pools of first and last names.
        seed: seed of the order and the wording of the text.
        batches: length of the only epoch, in optimiser steps.
        documents: documents per batch.
        row_length: tokens per row; several documents share a row and do not see each other.
        skills: share of the documents that are solved exercises.
        plain: share of plain text; the rest is about people.
        hidden: share of the documents with restricted attention to names.
    """

    def __init__(
        self,
        world_seed: int = 0,
        people: int = 1500,
        held_back: int = 100,
        names: int = 60,
        seed: int = 0,
        batches: int = 1200,
        documents: int = 160,
        row_length: int = 64,
        skills: float = 0.35,
        plain: float = 0.2,
        hidden: float = 0.7,
    ) -> None:
        super().__init__(seed, batches, row_length)
        self.world = World(world_seed, people, held_back, names)
        self.tokenizer = build_tokenizer(self.world)
        self.documents, self.skills, self.plain, self.hidden = documents, skills, plain, hidden

    @property
    def positions(self) -> int:
        """Twice what it sees in training, for prompts behind sampled text."""
        return 2 * self.row_length

    def make(self, i: int) -> dict[str, Tensor]:
        """See :meth:`lit_edit.pretraining.module.PretrainingData.make`."""
        rng = Random(f"batch-{self.seed}-{i}")
        documents = training_documents(self.world, rng, self.documents, self.skills, self.plain)
        return pack(documents, self.tokenizer, self.row_length, self.hidden, rng)

    def val_dataloader(self) -> DataLoader[list[Item]]:
        """Three sets of ``(prompt, answer)`` items: facts in the edit prompt, facts in other words, skills."""
        rng = Random("validation")
        asked, reworded = (self.world.facts(phrasing) for phrasing in (0, 1))
        n = min(200, len(asked))
        exercises = [item for name in SKILLS for item in held_out(name, 50)]
        sets: Any = [rng.sample(asked, n), rng.sample(reworded, n), exercises]
        return DataLoader(sets, batch_size=None)


class WorldPretrainer(Pretrainer):
    """A small causal language model that learns a world; its options are those of the base class."""

    def prepare(self) -> int:
        """See :meth:`lit_edit.pretraining.module.Pretrainer.prepare`: one score for every value of every relation."""
        world = self.data.world
        self.sizes = [len(relation.values) for relation in world.relations]
        truth = [[r.values.index(world.value(s, r)) for r in world.relations] for s in world.subjects]
        self.truth: Tensor
        self.register_buffer("truth", torch.tensor(truth), persistent=False)  # [people, relations]
        return sum(self.sizes)

    def auxiliary_loss(self, scores_MC: Tensor, subject_M: Tensor) -> Tensor:
        """Mean cross-entropy of the values over the relations."""
        parts = enumerate(scores_MC.split(self.sizes, -1))
        return torch.stack([F.cross_entropy(part, self.truth[subject_M, r]) for r, part in parts]).mean()

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Share of right answers in one set of items."""
        name = ("facts", "facts_reworded", "skills")[batch_idx]
        right = accuracy(self.net, self.data.tokenizer, batch)
        self.log(f"val/{name}", right, prog_bar=True, batch_size=len(batch))

    def export(self, folder: Path) -> None:
        """Write the trained model as an ordinary folder, with its card."""
        from lit_edit.world.export import export

        export(folder, self.net, self.data, dict(self.hparams), self.trainer.global_step)
