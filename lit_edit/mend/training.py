"""Training MEND's hyper-network: a plain Lightning module with a gradient loop.

Legend: T = tokens, V = vocabulary, L = picked positions of locality text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from random import Random
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus, SampledCorpus
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.mend.data import EditPair, PairBatch, PairData
from lit_edit.mend.file import Trained, save_network, weight_hash
from lit_edit.mend.network import HyperNetwork
from lit_edit.models.identity import load_pretrained
from lit_edit.passes.forward import logits_at
from lit_edit.passes.gradients import Answers, capture
from lit_edit.prompts import Encoder, Row, right_pad


@contextmanager
def changed(anatomy: Anatomy, deltas: Mapping[int, Delta]) -> Iterator[None]:
    r"""The model as if weights were changed, inside the block: each down-projection puts out :math:`y + \Delta x`.

    Equal to writing the deltas, at the cost of two thin products, and gradients flow into the factors.
    """

    def adding(delta: Delta) -> Any:
        left_OR, right_RI = delta.factors

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            input_TI: Tensor = args[0]
            return output + (input_TI.float() @ right_RI.T @ left_OR.T).to(output.dtype)

        return hook

    with ExitStack() as stack:
        for layer, delta in deltas.items():
            stack.enter_context(anatomy.down(layer).register_forward_hook(adding(delta)))
        yield


class MendTrainer(L.LightningModule):
    r"""Learns to turn an edit's gradient into an update that edits, and leaves other text alone.

    .. math:: \mathcal L = c_{\text{edit}} \, \text{NLL}_{\tilde W}(y_e \mid x_e')
              + c_{\text{loc}} \, \text{KL}(p_W \,\|\, p_{\tilde W})

    The edit is captured on the model ``W`` at its prompt; the updated model is asked at a paraphrase (see
    :class:`~lit_edit.mend.data.PairData`) and on locality text, where the divergence is the mean over all positions. Captured
    gradients are constants, as released: nothing is differentiated twice. The model itself never changes.

    Sums of gradients over ``accumulate_grad_batches`` are means in Lightning; Adam does not tell them apart, but a gradient
    is then clipped at ``accumulate_grad_batches`` times the released threshold.

    Source: Mitchell et al. 2022, arXiv 2110.11309, and its released code.

    Args:
        pretrained: folder or hub id of any Hugging Face causal language model.
        layers: blocks whose MLP down-projection is edited; default: the last three (published, with the projections into
            the MLPs besides).
        export_to: file for the trained network.
        corpus: locality text; default: sampled from the model itself.
        locality_texts: texts kept from the corpus, a tenth of them for validation.
        locality: texts drawn for each batch.
        rank: of the network's blocks (published: 1920); the full size where that is smaller.
        blocks: number of residual blocks (published: 2).
        edit_lr: where the learnt rates of the edits start (published: 1e-4; see the sign in
            :class:`lit_edit.mend.network.HyperNetwork`).
        lr: Adam's rate for the network (published: 1e-6).
        lr_lr: Adam's rate for the learnt rates (published: 1e-4).
        cedit: weight of the edit loss (published: 0.1).
        cloc: weight of the divergence on locality text (published: 1).
        warm_up: edits whose tokens the normaliser sees before the first step (released: 0: the first batches are
            standardised by a handful of tokens).
        revision: revision of the hub id.
        dtype: dtype the model runs in; editing has to use the same.
        seed: of the network's start and of the locality text of each batch.

    Raises:
        EditError: for a setting out of range.
    """

    strict_loading = False  # a checkpoint holds the network, not the model
    before: dict[str, float]
    """Measured on the validation edits with the untrained network; empty if its normaliser was not warmed up."""

    def __init__(
        self,
        pretrained: str,
        layers: list[int] | None = None,
        export_to: str = "checkpoints/mend/network.safetensors",
        corpus: Corpus | None = None,
        locality_texts: int = 1000,
        locality: int = 8,
        rank: int = 1920,
        blocks: int = 2,
        edit_lr: float = 1e-4,
        lr: float = 1e-6,
        lr_lr: float = 1e-4,
        cedit: float = 0.1,
        cloc: float = 1.0,
        warm_up: int = 0,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("locality_texts", locality_texts, 2), ("locality", locality, 1), ("warm_up", warm_up, 0)):
            if value < least:
                raise EditError(f"--model.{name} is {value}; it must be at least {least}")
        for name, rate in (("lr", lr), ("lr_lr", lr_lr), ("cedit", cedit), ("cloc", cloc)):
            if not rate >= 0:
                raise EditError(f"--model.{name} is {rate:g}; it must not be negative")
        self.pretrained, self.revision, self.model_dtype, self.wanted_layers = pretrained, revision, dtype, layers
        self.export_to, self.corpus = export_to, corpus or SampledCorpus()
        self.locality_texts, self.locality, self.warm_up = locality_texts, locality, warm_up
        self.rank, self.block_count, self.edit_lr, self.seed = rank, blocks, edit_lr, seed
        self.lr, self.lr_lr, self.cedit, self.cloc = lr, lr_lr, cedit, cloc
        self.net: nn.Module | None = None
        self.before = {}
        self.after: dict[str, float] = {}
        """Measured on the validation edits with the trained network."""
        self.training_texts: list[tuple[int, ...]] = []
        self.validation_texts: list[tuple[int, ...]] = []

    # ------------------------------------------------------------------------------------------------ setting up

    def configure_model(self) -> None:
        """Load the model (once) and build the network for its edited layers."""
        if self.net is not None:
            return
        with torch.device("cpu"):  # Lightning moves the module; loading straight onto a device would need accelerate
            self.net, tokenizer = load_pretrained(self.pretrained, self.revision, getattr(torch, self.model_dtype))
            self.net.requires_grad_(False).eval()
            self.anatomy = Anatomy.of(self.net)
            self.encoder = Encoder(tokenizer, self.anatomy.positions)
            count = len(self.anatomy.blocks)
            wanted = range(max(0, count - 3), count) if self.wanted_layers is None else self.wanted_layers
            self.layers = self.anatomy.check_layers(wanted)
            weights = {layer: self.anatomy.weight(layer) for layer in self.layers}
            shapes = {layer: (weight.shape[0], weight.shape[1]) for layer, weight in weights.items()}
            self.network = HyperNetwork(shapes, self.rank, self.block_count, self.edit_lr, self.seed)
            self.trained = Trained({layer: weight_hash(weight) for layer, weight in weights.items()}, self.pretrained)

    @property
    def data(self) -> PairData:
        """Where edits come from."""
        trainer: Any = self.trainer  # Lightning adds the data module to its trainer, unannotated
        data: PairData = trainer.datamodule
        return data

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with a rate of its own for the learnt rates of the edits."""
        rates = self.network.rates_P
        rest = [parameter for parameter in self.network.parameters() if parameter is not rates]
        return torch.optim.Adam(
            [{"params": rest, "lr": self.lr, "name": "network"}, {"params": [rates], "lr": self.lr_lr, "name": "rates"}]
        )

    def on_fit_start(self) -> None:
        """Tokenise edits and locality text, warm the normaliser up and measure the untrained network.

        Raises:
            EditError: if there is not enough text, or the trainer's settings do not fit.
        """
        if self.trainer.world_size > 1:
            raise EditError(f"the training spans {self.trainer.world_size} processes; use --trainer.devices 1")
        if self.trainer.precision != "32-true":
            raise EditError(
                f"--trainer.precision is {self.trainer.precision}; choose the dtype with --model.dtype and leave 32-true"
            )
        self.data.encode(self.encoder)
        texts = [tuple(row) for row in islice(self.corpus.token_rows(self.anatomy, self.encoder), self.locality_texts)]
        if len(texts) < 2:
            raise EditError(f"the corpus gave {len(texts)} texts; locality needs at least 2, one of them for validation")
        held = max(1, len(texts) // 10)
        self.validation_texts, self.training_texts = texts[:held], texts[held:]
        if self.network.tokens_seen:
            return  # a resumed training
        for pair in self.data.training_pairs[: self.warm_up]:
            self.network.observe(capture(self.anatomy, [pair.inner], self.layers, self.encoder.pad, answers_only=False)[0])
        if self.warm_up:
            self.before = self.measure()

    # ------------------------------------------------------------------------------------------------ one batch

    def deltas(self, rows: Sequence[Row]) -> tuple[dict[int, Delta], float]:
        """The update that edits of some rows make together, and their loss before it."""
        captured, loss = capture(self.anatomy, rows, self.layers, self.encoder.pad, answers_only=False)
        return {layer: self.network.delta(layer, captured[layer]) for layer in self.layers}, loss

    def divergence(self, deltas: Mapping[int, Delta], texts: Sequence[Sequence[int]]) -> Tensor:
        """Mean divergence of next-token distributions over all positions of some texts, before from after the update."""
        inputs = right_pad(texts, self.encoder.pad, self.anatomy.device)
        rows_L, columns_L = inputs["attention_mask"].bool().nonzero(as_tuple=True)
        with torch.no_grad():
            before_LV = logits_at(self.anatomy, inputs, rows_L, columns_L).log_softmax(-1)
        with changed(self.anatomy, deltas):
            after_LV = logits_at(self.anatomy, inputs, rows_L, columns_L).log_softmax(-1)
        return (before_LV.exp() * (before_LV - after_LV)).sum(-1).mean()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Weighted sum of the edit loss and the divergence on locality text."""
        deltas, before = self.deltas([pair.inner for pair in batch.pairs])
        with changed(self.anatomy, deltas):
            edit = Answers.of(batch.outer, self.encoder.pad, self.anatomy.device).losses(self.anatomy).mean()
        rng = Random(f"locality-{self.seed}-{batch.index}")
        texts = rng.sample(self.training_texts, min(self.locality, len(self.training_texts)))
        locality = self.divergence(deltas, texts)
        total = self.cedit * edit + self.cloc * locality
        shown = {"edit_nll": edit, "locality_kl": locality, "loss": total}
        self.log_dict({f"train/{name}": value.detach() for name, value in shown.items()}, prog_bar=True, batch_size=1)
        self.log("train/edit_nll_before", before, batch_size=1)
        for layer, rate in zip(self.layers, self.network.rates_P.tolist(), strict=True):
            self.log(f"rate/layer_{layer}", rate, batch_size=1)
        return total

    # ------------------------------------------------------------------------------------------------ measuring

    @torch.no_grad()
    def score(self, pair: EditPair, index: int) -> dict[str, float]:
        """One edit alone: losses before and after, answers right after it, divergence on its share of the validation texts."""
        asked = [pair.inner, *pair.paraphrases]
        answers = Answers.of(asked, self.encoder.pad, self.anatomy.device)
        at_prompt = answers.row_P == 0
        outer = ~at_prompt if pair.paraphrases else at_prompt
        deltas, _ = self.deltas([pair.inner])

        def read() -> tuple[Tensor, Tensor]:
            log_p = logits_at(self.anatomy, answers.inputs, answers.row_P, answers.column_P).log_softmax(-1)
            return -log_p.gather(1, answers.label_P[:, None])[:, 0], (log_p.argmax(-1) == answers.label_P).float()

        before, right_before = read()
        with changed(self.anatomy, deltas):
            after, right = read()
        texts = self.validation_texts
        shares = [texts[(index * self.locality + i) % len(texts)] for i in range(min(self.locality, len(texts)))]
        locality = float(self.divergence(deltas, shares))
        edit = float(after[outer].mean())
        return {
            "edit_nll_before": float(before[outer].mean()),
            "edit_nll": edit,
            "prompt_nll": float(after[at_prompt].mean()),
            "prompt_accuracy_before": float(right_before[at_prompt].mean()),
            "prompt_accuracy": float(right[at_prompt].mean()),
            "paraphrase_accuracy": float(right[outer].mean()),
            "locality_kl": locality,
            "loss": self.cedit * edit + self.cloc * locality,
        }

    def measure(self) -> dict[str, float]:
        """Means of :meth:`score` over the validation edits, with the network as it is."""
        training = self.network.training
        self.network.eval()
        scores = [self.score(pair, index) for index, pair in enumerate(self.data.validation_pairs)]
        self.network.train(training)
        return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}

    def validation_step(self, batch: tuple[EditPair, ...], batch_idx: int) -> None:
        """The same numbers, for the logs."""
        for pair in batch:
            self.log_dict({f"val/{name}": value for name, value in self.score(pair, batch_idx).items()}, batch_size=1)

    def on_train_end(self) -> None:
        """Measure once more and write the network."""
        self.after = self.measure()
        measured = {f"{name}/untrained": value for name, value in self.before.items()} | self.after
        self.trained = Trained(self.trained.weights, self.trained.pretrained, measured)
        save_network(self.export_to, self.network, self.trained)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the model out, which can be loaded again."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
        checkpoint["mend"] = {"weights": self.trained.weights, "before": self.before}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or layer set."""
        said = checkpoint.get("mend")
        if not isinstance(said, dict) or said["weights"] != self.trained.weights:
            raise EditError("the checkpoint does not come from training a hyper-network on this model and these layers")
        self.before = dict(said["before"])
