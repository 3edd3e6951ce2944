"""Replays recorded RECT masks: the authors' code on ROME's changes, and AlphaEdit's copy on MEMIT's (``MEMIT_rect``).

Legend: N = requests, O = d_out, I = d_in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from lit_edit.algebra.inverses import SpectralInverse
from lit_edit.delta import Delta
from lit_edit.editors import MEMIT
from lit_edit.guards import RECT
from lit_edit.solver import solve
from lit_edit.verify import family, moments, walk
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance

_EXACT = Tolerance(0.0, "exact")
_CLOSED = Tolerance(CLOSED_FORM, "closed form")


# -------------------------------------------------------------------------------------------- shared with other replays


def layers(recording: Recording, name: str) -> tuple[int, ...]:
    """Edited layers of a recorded method, in the order in which they were edited."""
    return recording.anatomy.check_layers(recording.options(name)["layers"])


def inputs(recording: Recording, file: TensorFile, name: str) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """``(batch, layer, keys_NI, residuals_NO)`` as recorded, in the order of editing; ends where they end."""
    o, i = recording.anatomy.d_model, recording.anatomy.d_inner
    for batch in range(len(recording.batches)):
        n = len(recording.batches[batch])
        for layer in layers(recording, name):
            at = f"batch{batch}/layer{layer}"
            if f"{at}/keys" not in file or f"{at}/resid" not in file:
                return
            yield batch, layer, file.matrix(f"{at}/keys", i, n).T, file.matrix(f"{at}/resid", o, n).T


def memit_deltas(recording: Recording, name: str) -> Iterator[tuple[int, int, Delta]]:
    """``(batch, layer, delta)`` of MEMIT's closed form on recorded keys, residuals and second moments of a method."""
    file = recording.tensors(name)
    if file is None:
        return
    lam = recording.want(f"hyper_parameters/{name}/mom2_update_weight", float)
    found, _ = moments.recorded(recording, layers(recording, name))
    inverse = {layer: SpectralInverse(*moment.eigen(), lam) for layer, moment in found.items()}
    for batch, layer, keys, residuals in inputs(recording, file, name):
        yield batch, layer, solve(inverse[layer], keys, residuals, 1.0)


# ------------------------------------------------------------------------------------------------------------- the guards


def official(recording: Recording) -> RECT:
    """The authors' variant, with the share that ``meta.json`` tells."""
    told = re.search(r"smallest (\d+)\s*%", _formula(recording, "RECT_official_on_ROME"))
    return RECT(keep=round(1 - float(told[1]) / 100, 12)) if told else RECT()


def alphaedit(recording: Recording) -> RECT:
    """AlphaEdit's variant, with the share that ``meta.json`` tells."""
    told = re.search(r"int\((0?\.\d+)\s*\*\s*numel\)", _formula(recording, "MEMIT_rect"))
    return RECT(keep=round(1 - float(told[1]), 12) if told else 0.4, defer=True, epsilon=1e-8, rule="threshold")


def _formula(recording: Recording, name: str) -> str:
    return str(recording.meta.get("formulas", {}).get(name, ""))


# ------------------------------------------------------------------------------------------------------------ the replays


def run(recording: Recording) -> list[Row]:
    """Rows of RECT: both variants."""
    return [*_on_rome(recording), *on_memit(recording)]


def _on_rome(recording: Recording) -> list[Row]:
    """Changes of ROME one after another, each cut against the weight that the ones before have left; and masks alone."""
    name = "RECT_official_on_ROME"
    tally, file = Tally(recording, name), recording.tensors(name)
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    guard, layer = official(recording), layers(recording, name)[-1]
    weight = recording.original[layer].clone()
    o, i = weight.shape
    edits = sorted(int(match[1]) for _, match in file.names(r"edit(\d+)/u"))
    for edit in edits:
        column, row = file.tensors[f"edit{edit}/v"].reshape(o, 1), file.tensors[f"edit{edit}/u"].reshape(1, i)
        kept = guard(layer, Delta.low_rank(column, row), weight).dense()
        tally.tensor(file, f"edit{edit}/delta_kept", "delta kept [recorded u, v]", kept, _CLOSED)
        tally.tensor(file, f"edit{edit}/delta_kept_nnz", "entries kept", kept.count_nonzero(), _EXACT)
        weight += kept
        file.compared |= {f"edit{edit}/u", f"edit{edit}/v"}  # what was kept of them was compared
    tally.tensor(file, f"W_final/layer{layer}", "W after all edits [recorded u, v]", weight, _CLOSED)
    _masks(recording, tally, file)
    return tally.rows()


def _masks(recording: Recording, tally: Tally, file: TensorFile) -> None:
    """Masks of both variants on recorded MEMIT changes of one batch, against the original weights."""
    told = re.search(r"MEMIT batch\s*(\d+)", _formula(recording, "RECT_official_on_ROME"))
    batch = int(told[1]) if told else 0
    ours = {layer: delta.dense() for at, layer, delta in memit_deltas(recording, "MEMIT") if at == batch}
    memit = recording.tensors("MEMIT")
    for name, match in file.names(r"fn/keep(\d+)_(official|alphaedit)/layer(\d+)"):
        keep, layer = int(match[1]) / 100, int(match[3])
        recorded = None if memit is None else memit.get(f"batch{batch}/layer{layer}/delta")
        delta = ours.get(layer) if recorded is None else recorded
        if delta is None:
            tally.note(name, "the MEMIT change it belongs to is not recorded")
            continue
        guard = RECT(keep) if match[2] == "official" else RECT(keep, epsilon=1e-8, rule="threshold")
        compare_mask(tally, file, name, f"mask {match[2]} [recorded delta]", guard.kept(delta, recording.original[layer]))


def compare_mask(tally: Tally, file: TensorFile, name: str, quantity: str, ours: Tensor) -> None:
    """Share of entries in which two masks differ.

    Two entries may: where the last one kept and the first one dropped are equal up to rounding, they swap places.
    """
    recorded = file.get(name)
    if recorded is None:
        return
    file.compared.add(name)
    allowed = Tolerance(2 / recorded.numel(), "one swap at the limit")
    same_shape = recorded.shape == ours.shape
    tally.add(quantity, float((recorded.bool() != ours).double().mean()) if same_shape else float("inf"), allowed, name)


@torch.no_grad()
def on_memit(recording: Recording) -> list[Row]:
    """``MEMIT_rect`` from recorded keys and residuals: deltas, masks, and weights with the cut made at the final write.

    The cut does not enter a solve on recorded inputs, so that deferring it shows only in those inputs.
    """
    name = "MEMIT_rect"
    tally, file = Tally(recording, name), recording.tensors(name)
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    guard = alphaedit(recording)
    allowed = tolerance(recording, name, "delta", CLOSED_FORM)
    _, exact = moments.recorded(recording, layers(recording, name))
    if not exact:
        allowed = Tolerance(THROUGH_MODEL, "second moments collected anew")
    # What is written is rounded to float32, however close the deltas are.
    written = allowed if allowed.value > CLOSED_FORM else _CLOSED
    weights = {layer: recording.original[layer].clone() for layer in layers(recording, name)}
    for batch, layer, delta in memit_deltas(recording, name):
        at, dense = f"batch{batch}/layer{layer}", delta.dense()
        tally.tensor(file, f"{at}/delta", "delta [recorded K, R, C]", dense, allowed)
        tally.tensor(file, f"{at}/delta_fro", "delta_fro [recorded K, R, C]", delta.norm(), allowed)
        compare_mask(tally, file, f"{at}/mask", "mask [recorded K, R, C]", guard.kept(dense, weights[layer]))
        weights[layer] += guard(layer, delta, weights[layer]).dense().float()
        tally.tensor(file, f"{at}/W_after", "W_after [recorded K, R, C]", weights[layer], written)
        tally.tensor(file, f"{at}/W_after_fro", "W_after_fro [recorded K, R, C]", weights[layer].double().norm(), written)
    found = Method.of(recording, name, lambda said: MEMIT(lam=said["mom2_update_weight"]), guards=lambda: [guard])
    assert found is not None
    family.residuals(found, tally)
    walk.read(found, tally)
    walk.replay(found, tally)
    return tally.rows()


CHECK = Check("RECT", ("RECT_official_on_ROME.safetensors", "MEMIT_rect.safetensors"), run)
