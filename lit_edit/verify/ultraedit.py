"""Replays recorded UltraEdit runs.

Legend: T = answer tokens, I = d_in, O = d_out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.editors.ultraedit import UltraEdit
from lit_edit.errors import EditError
from lit_edit.passes.gradients import capture
from lit_edit.prompts import EditRows, right_pad
from lit_edit.targets import TargetOptions
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.workbench import Workbench

_NAME = "UltraEdit"


@dataclass(frozen=True)
class Method:
    """A recorded run and what it takes to replay it."""

    recording: Recording
    file: TensorFile
    layers: tuple[int, ...]
    batches: list[list[EditRows]]
    lr: float
    minibatch: int

    @classmethod
    def of(cls, recording: Recording, file: TensorFile) -> Method:
        """Read layers, hyper-parameters and requests.

        Raises:
            EditError: if another module than a down-projection was edited.
        """
        anatomy, where = recording.anatomy, f"hyper_parameters/{_NAME}"
        pattern = rf"{re.escape(anatomy.blocks_name)}\.(\d+)\.{re.escape(anatomy.down_name)}"
        layers = []
        for name in recording.want(f"{where}/modules", list):
            found = re.fullmatch(pattern, name)
            if found is None:
                raise EditError(f"{recording.folder / 'meta.json'} edits {name}, which is no MLP down-projection")
            layers.append(int(found[1]))
        size = recording.want(f"{where}/n_edits", int)
        requests = [row.request for batch in recording.batches for row in batch]
        rounds = sorted({int(match[1]) for _, match in file.names(r"batch(\d+)/.*")})
        if rounds and len(requests) < size * len(rounds):
            raise EditError(f"{file.path} has {len(rounds)} rounds of {size} edits, more than the {len(requests)} requests")
        return cls(
            recording,
            file,
            anatomy.check_layers(layers),
            [[recording.encoder.answer_rows(one) for one in requests[size * b : size * (b + 1)]] for b in rounds],
            recording.want(f"{where}/lr", float),
            recording.want(f"{where}/batch_size", int),
        )

    def editor(self) -> UltraEdit:
        """A fresh editor."""
        editor = UltraEdit(self.lr, minibatch=self.minibatch)
        for layer in self.layers:
            editor.allocate(layer, self.recording.anatomy.d_model, self.recording.anatomy.d_inner)
        return editor


def run(recording: Recording) -> list[Row]:
    """Rows of UltraEdit: tokens, normaliser, deltas and weights from recorded inputs and gradients, then the model's part."""
    tally = Tally(recording, _NAME)
    file = recording.tensors(_NAME)
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    method = Method.of(recording, file)
    _tokens(method, tally)
    weights = _closed_form(method, tally)
    _read(method, tally, weights)
    _replay(method, tally)
    return tally.rows()


def _tokens(method: Method, tally: Tally) -> None:
    """What the model is fed and asked for, id by id."""
    exact = Tolerance(0.0, "exact")
    for batch, rows in enumerate(method.batches):
        bare = [row for some in method.editor().portions(rows) for row in some]
        inputs = right_pad([row.ids for row in bare], method.recording.encoder.pad, torch.device("cpu"))
        labels = torch.full_like(inputs["input_ids"], -100)
        for index, row in enumerate(bare):
            for column, token in row.labels:
                labels[index, column] = token
        recorded = method.file.get(f"batch{batch}/input_ids")
        if recorded is not None and recorded.shape == labels.shape:
            # Padding is masked, so that any id will do, and the reference has its own.
            inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], recorded)
        for name, ours in {**inputs, "labels": labels}.items():
            tally.tensor(method.file, f"batch{batch}/{name}", name, ours, exact)


@torch.no_grad()
def _closed_form(method: Method, tally: Tally) -> list[dict[int, Tensor]]:
    """Normaliser, deltas and weights from recorded inputs and gradients.

    Returns:
        The weights before every round whose earlier rounds were recorded.
    """
    rec, file, editor = method.recording, method.file, method.editor()
    allowed = tolerance(rec, _NAME, "delta_pushthrough", CLOSED_FORM)
    weights = {layer: rec.original[layer] for layer in method.layers}
    before = [dict(weights)]
    for batch in range(len(method.batches)):
        if any(f"batch{batch}/layer{layer}/{what}" not in file for layer in method.layers for what in ("keys", "grads")):
            tally.note(f"deltas from round {batch} on", "keys or gradients not recorded")
            break
        counts = [sum(len(row.labels) for row in some) for some in editor.portions(method.batches[batch])]
        tokens: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in method.layers:
            x = file.matrix(f"batch{batch}/layer{layer}/keys", sum(counts), rec.anatomy.d_inner)
            g = file.matrix(f"batch{batch}/layer{layer}/grads", sum(counts), rec.anatomy.d_model)
            tokens[layer] = (x, g)
        for portion in range(len(counts)):
            for layer in method.layers:
                x, g = (part.split(counts)[portion] for part in tokens[layer])
                editor.normaliser(layer).update(torch.cat([x, g], 1))
        _normaliser(method, tally, editor, batch, "[recorded x, g]", None)
        for layer, (x, g) in tokens.items():
            at = f"batch{batch}/layer{layer}"
            delta = editor.solve(layer, x, g)
            weights[layer] = weights[layer] + delta.dense().float()
            tally.tensor(file, f"{at}/delta", "delta [recorded x, g]", delta.dense(), allowed)
            tally.tensor(file, f"{at}/delta_fro", "delta_fro [recorded x, g]", delta.norm(), allowed)
            tally.tensor(file, f"{at}/W_after", "W_after [recorded x, g]", weights[layer], allowed)
            tally.tensor(file, f"{at}/W_after_fro", "W_after_fro [recorded x, g]", weights[layer].double().norm(), allowed)
        before.append(dict(weights))
    return before


def _normaliser(method: Method, tally: Tally, editor: UltraEdit, batch: int, label: str, allowed: Tolerance | None) -> None:
    """The statistics after a round; all layers of a shape share them."""
    found = editor.normaliser(method.layers[0])
    for what, ours in (("mean", found.mean), ("std", found.std), ("n", found.count)):
        held = allowed or tolerance(method.recording, _NAME, f"norm_{what}", CLOSED_FORM)
        tally.tensor(method.file, f"batch{batch}/norm_{what}", f"norm_{what} {label}", ours, held)


def _read(method: Method, tally: Tally, weights: list[dict[int, Tensor]]) -> None:
    """Inputs and gradients through the model, on the weights that the recording had."""
    rec = method.recording
    rec.restore()
    for batch, before in zip(range(len(method.batches)), weights, strict=False):
        for layer, weight in before.items():
            rec.anatomy.weight(layer).copy_(weight)
        _captured(method, tally, batch, "[recorded weights]")
    rec.restore()


def _captured(method: Method, tally: Tally, batch: int, label: str) -> None:
    rec, file = method.recording, method.file
    allowed = tolerance(rec, _NAME, "keys", THROUGH_MODEL), tolerance(rec, _NAME, "grads", THROUGH_MODEL)
    found = [
        capture(rec.anatomy, some, method.layers, rec.encoder.pad, answers_only=True)[0]
        for some in method.editor().portions(method.batches[batch])
    ]
    for layer in method.layers:
        at = f"batch{batch}/layer{layer}"
        tally.tensor(file, f"{at}/keys", f"keys {label}", torch.cat([part[layer].inputs_TI for part in found]), allowed[0])
        tally.tensor(file, f"{at}/grads", f"grads {label}", torch.cat([part[layer].gradients_TO for part in found]), allowed[1])


def _replay(method: Method, tally: Tally) -> None:
    """The whole run through the library's own step, from the original weights."""
    rec, file, label = method.recording, method.file, "[full replay]"
    allowed = Tolerance(THROUGH_MODEL, "float32 model")
    editor = method.editor()
    masters = {layer: rec.original[layer].clone() for layer in method.layers}
    rec.restore()
    for batch, rows in enumerate(method.batches):
        bench = Workbench(
            anatomy=rec.anatomy,
            layers=method.layers,
            guards=(),
            master=masters.__getitem__,
            original=rec.original.__getitem__,
            options=TargetOptions(),
            pad=rec.encoder.pad,
        )
        _captured(method, tally, batch, label)
        editor.change(bench, rows, None)
        bench.finish()
        _normaliser(method, tally, editor, batch, label, allowed)
        for layer, change in bench.changes.items():
            masters[layer] = masters[layer] + change
            at = f"batch{batch}/layer{layer}"
            tally.tensor(file, f"{at}/delta", f"delta {label}", change, allowed)
            tally.tensor(file, f"{at}/delta_fro", f"delta_fro {label}", change.double().norm(), allowed)
            tally.tensor(file, f"{at}/W_after", f"W_after {label}", masters[layer], allowed)
            tally.tensor(file, f"{at}/W_after_fro", f"W_after_fro {label}", masters[layer].double().norm(), allowed)
    rec.restore()


CHECK = Check(_NAME, ("UltraEdit.safetensors",), run)
