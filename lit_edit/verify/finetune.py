"""Replays recorded runs of the constrained fine-tuning baseline (FT-L)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.models.decoder import is_transposed
from lit_edit.passes.descent import DescentOptions, descend
from lit_edit.prompts import EditRows
from lit_edit.prompts import Row as Tokens
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.table import THROUGH_MODEL, Row, Tally, tolerance

_NAME = "FT"


@dataclass(frozen=True)
class Method:
    """A recorded run and what it takes to replay it."""

    recording: Recording
    file: TensorFile
    layers: tuple[int, ...]
    options: DescentOptions

    @classmethod
    def of(cls, recording: Recording, file: TensorFile) -> Method:
        """Read layers and hyper-parameters.

        Raises:
            EditError: if ``meta.json`` lacks one.
        """
        said = recording.options(_NAME)
        box = said.get("norm_constraint")
        try:
            options = DescentOptions(
                steps=said["num_steps"],
                lr=said["lr"],
                minibatch=said["batch_size"],
                weight_decay=said["weight_decay"],
                epsilon=box if isinstance(box, float) else None,  # the reference asks for the type as well
            )
            return cls(recording, file, recording.anatomy.check_layers(said["layers"]), options)
        except (KeyError, TypeError, ValueError) as error:
            raise EditError(
                f"{recording.folder / 'meta.json'} is incomplete: hyper_parameters/{_NAME} lacks {error}"
            ) from error

    def trained(self) -> dict[str, Tensor]:
        """The parameters that the reference trains: all whose name contains the edited module's, biases included."""
        model, said = self.recording.anatomy.model, self.recording.options(_NAME)
        names = [said["rewrite_module_tmp"].format(layer) for layer in self.layers]
        return {name: value.clone() for name, value in model.named_parameters() if any(part in name for part in names)}

    def asked(self, rows: Sequence[EditRows]) -> list[Tokens]:
        """The reference's labels: the answer's tokens, all at the prompt's last position.

        They are tokenised alone and padded to the longest answer of the mini-batch; what equals the tokenizer's unknown token
        is masked. That drops the padding where both are the same token (GPT-2); where there is no unknown token (Llama), BOS
        and padding are trained as labels.
        """
        tokenizer: Any = self.recording.encoder.tokenizer
        unknown, pad = tokenizer.unk_token_id, tokenizer.pad_token_id
        found = []
        for at in range(0, len(rows), self.options.minibatch):
            some = rows[at : at + self.options.minibatch]
            answers = [tokenizer(f" {row.request.target_new}")["input_ids"] for row in some]
            longest = max(len(answer) for answer in answers)
            for row, answer in zip(some, answers, strict=True):
                ids = tuple(self.recording.encoder.encode(row.request.text)[0])
                labels = [token for token in [*answer, *[pad] * (longest - len(answer))] if token != unknown]
                found.append(Tokens(ids, len(ids) - 1, tuple((len(ids) - 1, token) for token in labels)))
        return found


def run(recording: Recording) -> list[Row]:
    """Rows of FT-L: losses, weights and biases; the first batch on the recorded weights, then the whole run."""
    tally = Tally(recording, _NAME)
    file = recording.tensors(_NAME)
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    method = Method.of(recording, file)
    if recording.options(_NAME).get("wd_power_law") is not None:
        tally.note("weight decay by a power law", "never acts in the reference, which asks for a tuple where JSON gives a list")
    _replay(method, tally)
    return tally.rows()


def _replay(method: Method, tally: Tally) -> None:
    """The run from the original weights. The first batch starts from the recorded weights, later ones from what ours left.

    Weights of the batches between are not recorded, so that nothing else can start from recorded ones.
    """
    rec, file, anatomy = method.recording, method.file, method.recording.anatomy
    rec.restore()
    parameters = method.trained()
    before = {name: value.clone() for name, value in parameters.items()}
    own = dict(anatomy.model.named_parameters())
    try:
        for batch in sorted({int(match[1]) for _, match in file.names(r"batch(\d+)/.*")}):
            losses: list[float] = []
            asked = method.asked(rec.batches[batch])
            parameters = descend(anatomy, parameters, asked, rec.encoder.pad, method.options, on_epoch=_keeper(losses))
            with torch.no_grad():
                for name, value in parameters.items():
                    own[name].copy_(value)
            _compare(method, tally, batch, parameters, losses)
    finally:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)


def _keeper(losses: list[float]) -> Callable[[int, float], None]:
    return lambda _, loss: losses.append(loss)


def _compare(method: Method, tally: Tally, batch: int, parameters: dict[str, Tensor], losses: list[float]) -> None:
    rec, file, anatomy = method.recording, method.file, method.recording.anatomy
    label = "[recorded weights]" if batch == 0 else "[full replay]"

    def compare(what: str, ours: Tensor, at: str, like: str = "") -> None:
        allowed = tolerance(rec, _NAME, like or what, THROUGH_MODEL)
        tally.tensor(file, f"{at}/{what}", f"{what} {label}", ours, allowed)

    compare("losses", torch.tensor(losses), f"batch{batch}")
    for layer in method.layers:
        at, name = f"batch{batch}/layer{layer}", anatomy.weight_name(layer)
        stored, bias = parameters[name], parameters.get(f"{name.removesuffix('weight')}bias")
        weight = stored.T if is_transposed(anatomy.down(layer)) else stored
        compare("W_after", weight, at)
        compare("W_after_fro", weight.double().norm(), at, "W_after")
        if bias is not None:
            compare("bias_after", bias, at)


CHECK = Check(_NAME, ("FT.safetensors",), run)
