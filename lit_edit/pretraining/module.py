"""Pre-training of a small model that can be edited: a plain Lightning module.

A small model left alone stores nothing a locate-then-edit method could find: it copies the parts of a name to where the answer
is needed and decides there. Five training-time tricks bring about the mechanism that large models show, and none of them
leaves a trace in the stored model:

1. **Auxiliary heads** on the MLP outputs of the ``written`` layers at the last token of a name must tell what is true of the
   subject. Their weight falls from 1 to 0 at ``auxiliary_until`` of the steps; then they are thrown away.
2. **Restricted attention** to names in most documents (:func:`lit_edit.pretraining.rows.masks`).
3. **Dropped writers** (:func:`lit_edit.pretraining.tricks.tricks`).
4. **Slow keys**: in the written layers the projections into the MLP start wide and learn at a fraction of the rate. Keys
   then stay close to random features of the name, different for everybody, and it is the down-projection that
   learns the facts: the linear associative memory that closed-form editing assumes.
5. **Prefixes**, and several facts behind one name, in the text (:mod:`lit_edit.world.text`,
   :mod:`lit_edit.reference.documents`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_edit.pretraining.batches import GeneratedBatches
from lit_edit.pretraining.measures import blocks
from lit_edit.pretraining.network import build_network
from lit_edit.pretraining.rows import labels_and_weights
from lit_edit.pretraining.tricks import tricks


class PretrainingData(L.LightningDataModule):
    """Text that is generated while training; batch ``i`` follows from the seed and ``i`` alone.

    Args:
        seed: seed of the order and the wording of the text.
        batches: length of the only epoch, in optimiser steps.
        row_length: tokens per row; several documents share a row and do not see each other.
    """

    tokenizer: Any
    """A fast Hugging Face tokenizer, there once the data are set up."""

    def __init__(self, seed: int, batches: int, row_length: int) -> None:
        super().__init__()
        self.seed, self.batches, self.row_length = seed, batches, row_length

    @abstractmethod
    def make(self, i: int) -> dict[str, Tensor]:
        """Batch ``i``, as :func:`lit_edit.pretraining.rows.pack` gives it."""

    @property
    def positions(self) -> int:
        """The longest text that the model is to take, in tokens; it learns no position behind the end of a row."""
        return self.row_length

    def train_dataloader(self) -> GeneratedBatches:
        """One epoch of ready-made batches."""
        return GeneratedBatches(self.batches, self.make, self._processed)

    def _processed(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current  # Lightning annotates its base class
        return int(progress.processed)


class Pretrainer(L.LightningModule):
    """A small causal language model that learns facts about subjects where an editor can find them.

    A subclass says in :meth:`prepare` and :meth:`auxiliary_loss` what is true of a subject, and in :meth:`export` what
    becomes of the trained model.

    Args:
        family: ``gpt2`` or ``llama`` (rotary positions, gated MLPs, RMS norm).
        width: size of the residual stream.
        layers: number of blocks.
        heads: attention heads per block.
        inner: width of the MLPs.
        written: layers whose MLPs are to store the facts; later blocks see only the last token of a name.
        auxiliary: weight of the auxiliary loss at the first step.
        auxiliary_until: share of the steps after which the auxiliary loss is off.
        drop: share of the mentions at which one of the written layers is silent.
        key_std: standard deviation at which the written layers' projections into the MLP start; ``null`` keeps the family's.
        key_lr: their learning rate, as a factor of ``lr``.
        lr: peak learning rate (AdamW, linear warm-up, cosine to zero).
        warmup: steps of warm-up.
        weight_decay: decoupled, on matrices only.
        activation: of the MLPs, by its name in transformers; ``null`` keeps the family's.
        export_to: folder for the trained model; ``null`` keeps nothing.
    """

    def __init__(
        self,
        family: str = "gpt2",
        width: int = 256,
        layers: int = 4,
        heads: int = 8,
        inner: int = 1024,
        written: tuple[int, ...] = (0, 1),
        auxiliary: float = 1.0,
        auxiliary_until: float = 0.8,
        drop: float = 0.2,
        key_std: float | None = 0.0625,
        key_lr: float = 0.05,
        lr: float = 2e-3,
        warmup: int = 100,
        weight_decay: float = 0.3,
        activation: str | None = None,
        export_to: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: Any = None  # a Hugging Face causal language model, once configured
        self.readers: Any = None  # auxiliary heads, one per written layer

    @abstractmethod
    def prepare(self) -> int:
        """Get ready what :meth:`auxiliary_loss` compares with; returns the number of scores that it needs."""

    @abstractmethod
    def auxiliary_loss(self, scores_MC: Tensor, subject_M: Tensor) -> Tensor:
        """How badly ``C`` scores tell what is true of the subjects of ``M`` mentions."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained model."""

    @property
    def settings(self) -> Any:
        """The arguments of the constructor, as attributes."""
        return self.hparams

    @property
    def data(self) -> Any:
        """The data module: where tokenizer and text come from."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training.

        Lightning's own estimate sets the data up before it restores their position from a checkpoint, which is then lost.
        """
        trainer = self.trainer
        all_of_them = -(-int(self.data.batches) // trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
        return all_of_them if trainer.max_steps < 0 else min(trainer.max_steps, all_of_them)

    def configure_model(self) -> None:
        """Build the network for the vocabulary of the data module."""
        if self.net is not None:
            return
        data, h = self.data, self.settings
        with torch.device("cpu"):
            self.net = build_network(h, len(data.tokenizer), data.tokenizer.eos_token_id, data.positions)
            classes = self.prepare()
            self.readers = nn.ModuleDict({str(i): nn.Linear(h.width, classes) for i in h.written})
            if h.key_std is not None:
                for weight in self._key_weights():
                    nn.init.normal_(weight, std=h.key_std)
        self.net.train()

    def _key_weights(self) -> list[nn.Parameter]:
        """Projections from the residual stream into the MLPs of the written layers."""
        names = ("c_fc", "gate_proj", "up_proj")
        mlps: list[Any] = [blocks(self.net)[layer].mlp for layer in self.settings.written]
        return [getattr(mlp, name).weight for mlp in mlps for name in names if hasattr(mlp, name)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted cross-entropy of the text plus the auxiliary loss."""
        h, ids = self.settings, batch["ids"]
        ones = torch.ones_like(ids)  # the mask of ones is replaced in every block
        # Drawn from seed and step alone, so that a resumed training goes on with the same draws.
        draws = torch.Generator().manual_seed(Random(f"silent-{torch.initial_seed()}-{self.global_step}").getrandbits(60))
        with tricks(self.net, batch, h.written, h.drop, draws) as written:
            states = self.net.base_model(
                input_ids=ids, position_ids=batch["positions"], attention_mask=ones, use_cache=False
            ).last_hidden_state
        labels, weight = labels_and_weights(batch)
        counts = weight > 0  # the head is a large part of the work, and most tokens of a name are no labels
        logits = self.net.get_output_embeddings()(states[counts])
        each = F.cross_entropy(logits, labels[counts], reduction="none")
        loss = (each * weight[counts]).sum() / weight.sum()
        total = self.steps * h.auxiliary_until
        strength = h.auxiliary * max(0.0, 1.0 - self.global_step / total)
        self.log("loss/text", loss, prog_bar=True)
        at = batch["subject"] >= 0
        if strength > 0.0 and bool(at.any()):
            told = torch.stack([self._told(layer, out[at], batch["subject"][at]) for layer, out in written.items()]).mean()
            self.log("loss/auxiliary", told, prog_bar=True)
            loss = loss + strength * told
        return loss

    def _told(self, layer: int, out_MD: Tensor, subject_M: Tensor) -> Tensor:
        """Loss of reading what is true off the MLP output of one layer."""
        return self.auxiliary_loss(self.readers[str(layer)](out_MD), subject_M)

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices, warm-up and cosine."""
        h = self.settings
        keys = self._key_weights()
        trained = [p for p in self.parameters() if not any(p is key for key in keys)]
        groups = [
            {"params": keys, "weight_decay": h.weight_decay, "lr": h.lr * h.key_lr},
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": h.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=h.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(h.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Write the trained model as an ordinary folder."""
        if self.settings.export_to is not None and self.trainer.is_global_zero:
            self.export(Path(self.settings.export_to))


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear up to 1 in ``warmup`` steps, then a half cosine to 0 at ``steps``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor
