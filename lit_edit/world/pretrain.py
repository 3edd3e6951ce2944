"""Pre-training of the small model: a plain Lightning module and data module.

A small model left alone stores nothing a locate-then-edit method could find: it copies both names to where the answer is
needed and decides there. Five training-time tricks bring about the mechanism that large models show, and none of them
leaves a trace in the stored model:

1. **Auxiliary heads** on the MLP outputs of the ``written`` layers at the last token of a name must tell all attributes
   of the person. Their weight falls from 1 to 0 at ``auxiliary_until`` of the steps; then they are thrown away.
2. **Restricted attention** to names in most documents (:func:`lit_edit.world.rows.masks`).
3. **Dropped writers**: for a share of the mentions, the MLP of one of the written layers, drawn at random, writes
   nothing at the name. No single layer can then hold the facts alone, so that several layers share an edit.
4. **Slow keys**: in the written layers the projections into the MLP start wide and learn at a fraction of the rate. Keys
   then stay close to random features of the name pair, different for everybody, and it is the down-projection that
   learns the facts: the linear associative memory that closed-form editing assumes.
5. **Biographies and prefixes** in the text (:func:`lit_edit.world.text.person_document`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lit_edit.world import check
from lit_edit.world.facts import World
from lit_edit.world.network import build_network
from lit_edit.world.rows import labels_and_weights, masks, pack
from lit_edit.world.skills import SKILLS, held_out
from lit_edit.world.text import training_documents
from lit_edit.world.tokenizer import build_tokenizer


class _Batches(Dataset[dict[str, Tensor]]):
    """Batch ``i`` follows from the seed and ``i`` alone."""

    def __init__(self, data: WorldData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        data = self.data
        rng = Random(f"batch-{data.seed}-{i}")
        documents = training_documents(data.world, rng, data.documents, data.skills, data.plain)
        return pack(documents, data.tokenizer, data.row_length, data.hidden, rng)


class WorldData(L.LightningDataModule):
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
        super().__init__()
        self.world = World(world_seed, people, held_back, names)
        self.tokenizer = build_tokenizer(self.world)
        self.seed, self.batches, self.documents, self.row_length = seed, batches, documents, row_length
        self.skills, self.plain, self.hidden = skills, plain, hidden

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """One epoch of ready-made batches."""
        return DataLoader(_Batches(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[list[check.Item]]:
        """Three sets of ``(prompt, answer)`` items: facts in the edit prompt, facts in other words, skills."""
        rng = Random("validation")
        asked, reworded = (self.world.facts(phrasing) for phrasing in (0, 1))
        n = min(200, len(asked))
        exercises = [item for name in SKILLS for item in held_out(name, 50)]
        sets: Any = [rng.sample(asked, n), rng.sample(reworded, n), exercises]
        return DataLoader(sets, batch_size=None)


class WorldPretrainer(L.LightningModule):
    """A small causal language model that learns a world.

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
        export_to: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: Any = None  # a Hugging Face causal language model, once configured
        self.readers: Any = None  # auxiliary heads, one per written layer

    @property
    def settings(self) -> Any:
        """The arguments of the constructor, as attributes."""
        return self.hparams

    @property
    def data(self) -> WorldData:
        """Where world, tokenizer and text come from."""
        trainer: Any = self.trainer  # Lightning adds the data module to its trainer, unannotated
        data: WorldData = trainer.datamodule
        return data

    def configure_model(self) -> None:
        """Build the network for the vocabulary of the data module."""
        if self.net is not None:
            return
        data = self.data
        with torch.device("cpu"):
            self.net = build_network(self.settings, len(data.tokenizer), data.tokenizer.eos_token_id)
            sizes = [len(relation.values) for relation in data.world.relations]
            self.readers = nn.ModuleDict({str(i): nn.Linear(self.settings.width, sum(sizes)) for i in self.settings.written})
            if self.settings.key_std is not None:
                for weight in self._key_weights():
                    nn.init.normal_(weight, std=self.settings.key_std)
        self.net.train()
        self.sizes = sizes
        truth = [[r.values.index(data.world.value(s, r)) for r in data.world.relations] for s in data.world.subjects]
        self.truth: Tensor
        self.register_buffer("truth", torch.tensor(truth), persistent=False)  # [people, relations]

    def _key_weights(self) -> list[nn.Parameter]:
        """Projections from the residual stream into the MLPs of the written layers."""
        names = ("c_fc", "gate_proj", "up_proj")
        mlps = [check.blocks(self.net)[layer].mlp for layer in self.settings.written]
        return [getattr(mlp, name).weight for mlp in mlps for name in names if hasattr(mlp, name)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted cross-entropy of the text plus the auxiliary loss."""
        ids, ones = batch["ids"], torch.ones_like(batch["ids"])  # the mask of ones is replaced in every block
        with self._tricks(batch) as written:
            logits = self.net(input_ids=ids, position_ids=batch["positions"], attention_mask=ones, use_cache=False).logits
        labels, weight = labels_and_weights(batch)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (each * weight.flatten()).sum() / weight.sum()
        total = self.trainer.estimated_stepping_batches * self.settings.auxiliary_until
        strength = self.settings.auxiliary * max(0.0, 1.0 - self.global_step / total)
        self.log("loss/text", loss, prog_bar=True)
        if strength > 0.0:
            told = self._auxiliary(batch, written)
            self.log("loss/auxiliary", told, prog_bar=True)
            loss = loss + strength * told
        return loss

    @contextmanager
    def _tricks(self, batch: dict[str, Tensor]) -> Iterator[dict[int, Tensor]]:
        """Hooks for one forward pass: restricted attention, dropped writers; yields the MLP outputs as they appear."""
        early, late = masks(batch)
        written = tuple(self.settings.written)
        outputs: dict[int, Tensor] = {}
        silent = self._silent(batch["mention"])  # [B, T], a layer number or -1

        def mask_for(layer: int) -> Any:
            chosen = early if layer <= max(written) else late

            def hook(block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
                given = signature(block.forward).bind(*args, **kwargs)  # families pass the mask by place or by name
                given.arguments["attention_mask"] = chosen
                return given.args, given.kwargs

            return hook

        def writer(layer: int) -> Any:
            def hook(_m: nn.Module, _args: Any, out: Tensor) -> Tensor:
                outputs[layer] = out
                return out * (silent != layer)[:, :, None]

            return hook

        with ExitStack() as stack:
            block: Any
            for number, block in enumerate(check.blocks(self.net)):
                stack.enter_context(block.register_forward_pre_hook(mask_for(number), with_kwargs=True))
                if number in written:
                    stack.enter_context(block.mlp.register_forward_hook(writer(number)))
            yield outputs

    def _silent(self, mention: Tensor) -> Tensor:
        """Which written layer is silent at each token of a name, ``[B, T]``; -1 for none; one draw per mention."""
        rows, most = mention.shape[0], int(mention.max()) + 1
        layers = torch.tensor(self.settings.written, device=mention.device)
        drawn = layers[torch.randint(len(layers), (rows, most), device=mention.device)]
        drawn = torch.where(torch.rand(rows, most, device=mention.device) < self.settings.drop, drawn, -1)
        drawn[:, 0] = -1
        return drawn.gather(1, mention)

    def _auxiliary(self, batch: dict[str, Tensor], written: dict[int, Tensor]) -> Tensor:
        """Mean cross-entropy of reading every attribute off every written MLP output."""
        at = batch["person"] >= 0
        truth = self.truth[batch["person"][at]]  # [mentions, relations]
        losses = [
            F.cross_entropy(scores, truth[:, r])
            for layer, out in written.items()
            for r, scores in enumerate(self.readers[str(layer)](out[at]).split(self.sizes, -1))
        ]
        return torch.stack(losses).mean()

    def validation_step(self, batch: list[check.Item], batch_idx: int) -> None:
        """Share of right answers in one set of items."""
        name = ("facts", "facts_reworded", "skills")[batch_idx]
        right = check.accuracy(self.net, self.data.tokenizer, batch)
        self.log(f"val/{name}", right, prog_bar=True, batch_size=len(batch))

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
        steps = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < h.warmup:
                return (step + 1) / float(h.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - h.warmup) / max(1, steps - h.warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Write the trained model as an ordinary folder."""
        if self.settings.export_to is not None and self.trainer.is_global_zero:
            from lit_edit.world.export import export

            trainer = self.trainer
            export(Path(self.settings.export_to), self.net, self.data, dict(self.hparams), trainer.global_step)
