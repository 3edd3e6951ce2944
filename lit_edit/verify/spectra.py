"""Replays recorded spectral measures: ranks per tau, and how editing turns the singular subspaces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_edit.spectrum import Spectrum, decompose, energy_rank, subspace_similarity, vector_similarity
from lit_edit.verify import sequence
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.revive import METHODS
from lit_edit.verify.table import CLOSED_FORM, Row, Tally, Tolerance

_ALLOWED = Tolerance(CLOSED_FORM, "closed form")
_EXACT = Tolerance(0.0, "exact")


def run(recording: Recording) -> list[Row]:
    """Rows of the spectral measures of the original weights and of every recorded trajectory that can be followed."""
    tally = Tally(recording, "spectra")
    said = recording.json("revive_and_spectral.json")
    if said is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    originals: dict[int, Spectrum] = {}
    for key, value in said.items():
        match = re.fullmatch(r"layer(\d+)/(?:sigma_W0|tau([\d.]+))", key)
        if match is None:
            continue
        layer = int(match[1])
        if layer not in originals:
            originals[layer] = decompose(recording.original[layer])
        if match[2] is None:
            recorded = torch.tensor(value, dtype=torch.float64)
            tally.add("sigma of W0", _relative(originals[layer].sigma, recorded), _ALLOWED, key)
        else:
            _ranks(tally, key, originals[layer].sigma, float(match[2]), value)
    for key, value in said.items():
        match = re.fullmatch(r"spectral_metrics_(.+)", key)
        if match is not None:
            _trajectory(tally, recording, match[1], value)
    return tally.rows()


def _ranks(tally: Tally, key: str, sigma: Tensor, tau: float, said: Mapping[str, Any]) -> None:
    """Protected ranks by both rules and the cumulative shares around them."""
    rank = energy_rank(sigma, tau)
    share = sigma.cumsum(0) / sigma.sum()
    if "k_ge" in said:
        tally.add("k per tau, rule at_least", abs(rank - said["k_ge"]), _EXACT, key)
    if "k_released_code_rule" in said:
        released = energy_rank(sigma, tau, rule="released")
        tally.add("k per tau, rule released", abs(released - said["k_released_code_rule"]), _EXACT, key)
    if "cum_at_k" in said:
        tally.scalar("cumulative share at k", float(share[rank - 1]), said["cum_at_k"], _ALLOWED, key)
    if "cum_at_k_minus_1" in said:
        before = float(share[rank - 2]) if rank > 1 else 0.0
        tally.scalar("cumulative share at k", before, said["cum_at_k_minus_1"], _ALLOWED, key)


def _trajectory(tally: Tally, recording: Recording, name: str, said: Mapping[str, Any]) -> None:
    """Measures of the weights before and after every batch of one method."""
    method = METHODS[name](recording) if name in METHODS else None
    if method is None:
        tally.note(f"trajectory of {name}", "not yet covered" if name not in METHODS else "no tensors recorded")
        return
    weights = {(layer, -1): recording.original[layer] for layer in method.layers}
    for batch, layer, _, weight in sequence.solved(method, method.editor()[0]):
        weights[layer, batch] = weight.clone()
    first = {layer: decompose(recording.original[layer]) for layer in method.layers}
    for key, value in said.items():
        match = re.fullmatch(r"layer(\d+)/after_batch(-?\d+)", key)
        if match is None or (int(match[1]), int(match[2])) not in weights:
            tally.note(key, "no weights recorded for it")
            continue
        layer = int(match[1])
        weight = weights[layer, int(match[2])]
        _measures(tally, key, first[layer], recording.original[layer], weight, value)


def _measures(tally: Tally, key: str, first: Spectrum, original: Tensor, weight: Tensor, said: Mapping[str, Any]) -> None:
    now = decompose(weight)
    moved = weight.double() - original.double()
    ours = {
        "fro": float(weight.double().norm()),
        "spectral": float(now.sigma[0]),
        "sigma_min": float(now.sigma[-1]),
        "condition": now.condition_number(),
        "fro_delta_acc": float(moved.norm()),
        "spectral_delta_acc": float(decompose(moved).sigma[0]),
        "sum_sigma": float(now.sigma.sum()),
    }
    for quantity, value in ours.items():
        if quantity in said:
            tally.scalar(quantity, value, said[quantity], _ALLOWED, key)
    for name, entry in said.items():
        match = re.fullmatch(r"(?:tau([\d.]+)|k(\d+))", name)
        if match is None or not isinstance(entry, dict):
            continue
        rank = int(match[2]) if match[2] else energy_rank(first.sigma, float(match[1]))
        if "k" in entry:
            tally.add("k of LS and SS", abs(rank - entry["k"]), _EXACT, f"{key}/{name}")
        for quantity, value in similarities(first, now, rank).items():
            if quantity in entry:
                # Cosines in [0, 1]: their scale is 1, not their own (chance) size.
                tally.add(quantity, abs(value - entry[quantity]), _ALLOWED, f"{key}/{name}")


def similarities(first: Spectrum, now: Spectrum, rank: int) -> dict[str, float]:
    """LS and SS of the dominant ``rank`` directions on both sides, by the names the recordings give them."""
    a, b = first.subspace(rank), now.subspace(rank)
    left, right = subspace_similarity(a.left, b.left), subspace_similarity(a.right, b.right)
    return {
        "LS_U": left,
        "LS_V": right,
        "LS": (left + right) / 2,
        "SS_left": vector_similarity(a.left, b.left),
        "SS_right": vector_similarity(a.right, b.right),
    }


def _relative(ours: Tensor, recorded: Tensor) -> float:
    if ours.shape != recorded.shape:
        return float("inf")
    return float((ours - recorded).norm() / recorded.norm())


CHECK = Check("spectra", ("revive_and_spectral.json",), run)
