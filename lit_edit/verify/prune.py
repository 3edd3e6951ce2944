"""Replays the recorded PRUNE restraints of the weights that MEMIT has left."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.guards import PRUNE
from lit_edit.guards.prune import leading
from lit_edit.spectrum import decompose
from lit_edit.verify import rect
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.table import CLOSED_FORM, Row, Tally, Tolerance, tolerance

_CLOSED = Tolerance(CLOSED_FORM, "closed form")


@torch.no_grad()
def run(recording: Recording) -> list[Row]:
    """Rows of PRUNE: restrained weights of every recorded restraint and scale, and what they were computed from."""
    tally, file = Tally(recording, "PRUNE"), recording.tensors("PRUNE")
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    edited, exact = _edited(recording)
    said = recording.meta.get("info", {}).get("PRUNE", {})
    inputs: dict[tuple[str, int], Tensor] = {}
    wanted = [(match[1], int(match[3])) for _, match in file.names(r"scale([\d.]+)/(\w+)/layer(\d+)/W")]
    told = [(match[1], int(match[2])) for match in (re.fullmatch(r"scale([\d.]+)/layer(\d+)", key) for key in said) if match]
    for scale, layer in sorted({*wanted, *told}):
        weight = _input(recording, tally, file, edited, scale, layer, exact)
        if weight is None:
            tally.note(f"scale{scale}/layer{layer}", "the weight it was computed from is not recorded")
            continue
        inputs[scale, layer] = weight
        _spectrum(recording, tally, said.get(f"scale{scale}/layer{layer}", {}), weight, scale, layer)
    for name, match in file.names(r"scale([\d.]+)/(\w+)/layer(\d+)/W"):
        scale, restraint, layer = match[1], match[2], int(match[3])
        if (scale, layer) not in inputs:
            continue
        guard = PRUNE(restraint)  # type: ignore[arg-type]  # a recorded name; an unknown one is refused by a sentence
        guard.prepare(layer, recording.original[layer], decompose(recording.original[layer]))
        allowed = tolerance(recording, "PRUNE", restraint, CLOSED_FORM)
        tally.tensor(file, name, f"W restrained, {restraint}", guard.view(layer, inputs[scale, layer]), allowed)
    return tally.rows()


def _edited(recording: Recording) -> tuple[dict[int, Tensor], bool]:
    """Weights after the MEMIT batch that the recording names, and whether all of them were recorded as such."""
    told = re.search(r"MEMIT batch\s*(\d+)", str(recording.meta.get("formulas", {}).get("PRUNE", "")))
    file = recording.tensors("MEMIT")
    if told is None or file is None:
        return {}, False
    batch, found = int(told[1]), {}
    layers = rect.layers(recording, "MEMIT")
    for layer in layers:
        weight = file.get(f"batch{batch}/layer{layer}/W_after")
        if weight is not None:
            found[layer] = weight
    if len(found) == len(layers):
        return found, True
    weights = {layer: recording.original[layer].clone() for layer in layers}
    for at, layer, delta in rect.memit_deltas(recording, "MEMIT"):
        if at <= batch:
            weights[layer] += delta.dense().float()
    return {**weights, **found}, False


def _input(
    recording: Recording, tally: Tally, file: TensorFile, edited: dict[int, Tensor], scale: str, layer: int, exact: bool
) -> Tensor | None:
    """The weight before the restraint: recorded, else the one MEMIT left, its change multiplied by the scale."""
    ours = None
    if layer in edited:
        original = recording.original[layer]
        ours = edited[layer] if float(scale) == 1 else original + float(scale) * (edited[layer] - original)
    name = f"scale{scale}/layer{layer}/W_T"
    recorded = file.get(name)
    if recorded is not None and ours is not None:
        tally.tensor(file, name, f"W before, scaled [{'recorded' if exact else 'recomputed'} W_after]", ours, _CLOSED)
    return ours if recorded is None else recorded


def _spectrum(recording: Recording, tally: Tally, said: dict[str, object], weight: Tensor, scale: str, layer: int) -> None:
    """Singular values told in ``meta.json``: the original weight's largest, the change's first, and how many are restrained."""
    where, original = f"scale{scale}/layer{layer}", recording.original[layer]
    largest = float(decompose(original).sigma[0])
    _, sigma, _ = leading(Delta.from_dense(weight.double() - original.double()), len)
    if isinstance(value := said.get("sigma_max_W0"), float):
        tally.scalar("sigma_max of W0", largest, value, _CLOSED, where)
    if isinstance(value := said.get("sigma_delta_top"), list):
        theirs = torch.tensor(value, dtype=torch.float64)
        tally.add("singular values of the change", float((sigma[: len(value)] - theirs).norm() / theirs.norm()), _CLOSED, where)
    if isinstance(value := said.get("n_above"), int):
        tally.scalar("values restrained", int((sigma >= largest).sum()), value, Tolerance(0.0, "exact"), where)


CHECK = Check("PRUNE", ("PRUNE.safetensors",), run)
