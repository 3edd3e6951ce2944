"""Replays the recorded REVIVE projections of recorded deltas."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.guards import REVIVE
from lit_edit.spectrum import Spectrum, decompose, energy_rank
from lit_edit.verify import alphaedit, emmet, encore, memit, memit_seq, sequence
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, Row, Tally, Tolerance, tolerance

METHODS: Mapping[str, Callable[[Recording], Method | None]] = {
    "MEMIT": memit.method,
    "MEMIT_seq": memit_seq.stored,
    "AlphaEdit": alphaedit.rounded,
    "EMMET": emmet.method,
    "ENCORE": encore.method,
}
"""Methods whose deltas can be recomputed where only their norms were recorded."""

_NAME = re.compile(r"(.+)/batch(\d+)/layer(\d+)/tau([\d.]+)")
_ALLOWED = Tolerance(CLOSED_FORM, "closed form")


class Deltas:
    """Deltas of any recorded method: the recorded one, else recomputed from recorded keys and residuals.

    Args:
        recording: the folder.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._solved: dict[str, dict[tuple[int, int], Tensor]] = {}

    def get(self, method: str, batch: int, layer: int) -> tuple[Tensor, Tolerance] | None:
        """A dense delta in float64 and how exactly it is known, ``None`` where neither is possible."""
        file = self.recording.tensors(method)
        if file is None:
            return None
        name = f"batch{batch}/layer{layer}/delta"
        if name in file:
            anatomy = self.recording.anatomy
            return file.matrix(name, anatomy.d_model, anatomy.d_inner).double(), _ALLOWED
        if method not in METHODS:
            return None
        if method not in self._solved:
            found = METHODS[method](self.recording)
            assert found is not None
            deltas = sequence.solved(found, found.editor()[0])
            self._solved[method] = {(b, at): delta.dense() for b, at, delta, _ in deltas}
        found_delta = self._solved[method].get((batch, layer))
        allowed = tolerance(self.recording, method, "delta", CLOSED_FORM)
        return None if found_delta is None else (found_delta, allowed if allowed.value > CLOSED_FORM else _ALLOWED)


def run(recording: Recording) -> list[Row]:
    """Rows of REVIVE: projected deltas in both bases, their norms, and that nothing protected is left in them."""
    tally = Tally(recording, "REVIVE")
    file, said = recording.tensors("REVIVE"), recording.json("revive_and_spectral.json")
    if file is None and said is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    spectra: dict[int, Spectrum] = {}
    deltas = Deltas(recording)
    names = [] if file is None else [(name.rpartition("/"), match) for name, match in file.names(r"(.+)/safe_(full|compact)")]
    jobs: dict[str, dict[str, Any]] = {match[1]: {} for _, match in names}
    jobs |= {key: value for key, value in (said or {}).items() if _NAME.fullmatch(key) and isinstance(value, dict)}
    skipped: dict[str, int] = {}
    for job in sorted(jobs):
        match = _NAME.fullmatch(job)
        if match is None:
            continue
        method, batch, layer, tau = match[1], int(match[2]), int(match[3]), float(match[4])
        known = deltas.get(method, batch, layer)
        if known is None:
            skipped[method] = skipped.get(method, 0) + 1
            continue
        delta, allowed = known
        if layer not in spectra:
            spectra[layer] = decompose(recording.original[layer])
        if energy_rank(spectra[layer].sigma, tau) >= len(spectra[layer].sigma):
            tally.note(f"tau {tau:g}", "protects everything; refused here by design")
            continue
        safe = {basis: _project(delta, layer, tau, basis, recording, spectra[layer]) for basis in ("full", "compact")}
        for basis, ours in safe.items():
            if file is not None:
                tally.tensor(file, f"{job}/safe_{basis}", f"safe delta, {basis} basis", ours, allowed)
        _norms(tally, job, jobs[job], delta, safe, spectra[layer], tau, allowed)
    for method, count in sorted(skipped.items()):
        tally.note(f"{count} projections of {method}", "delta not recorded, not recomputed")
    return tally.rows()


def _project(delta: Tensor, layer: int, tau: float, basis: Any, recording: Recording, spectrum: Spectrum) -> Tensor:
    """The delta as the guard lets it through."""
    weight = recording.original[layer]
    guard = REVIVE(tau=tau, basis=basis)
    guard.prepare(layer, weight, spectrum)
    safe: Tensor = guard(layer, Delta.from_dense(delta), weight).dense()
    return safe


def _norms(
    tally: Tally,
    job: str,
    said: dict[str, Any],
    delta: Tensor,
    safe: dict[str, Tensor],
    spectrum: Spectrum,
    tau: float,
    allowed: Tolerance,
) -> None:
    """The numbers of one projection; what should be zero is compared on the scale of the delta."""
    full, compact = safe["full"], safe["compact"]
    keep = spectrum.subspace(energy_rank(spectrum.sigma, tau))
    ours = {
        "norm_delta": float(delta.norm()),
        "norm_safe_full": float(full.norm()),
        "norm_safe_compact": float(compact.norm()),
        "rel_diff_full_vs_compact": float((full - compact).norm() / full.norm()),
    }
    for key, value in ours.items():
        if isinstance(said.get(key), int | float):
            label = key if allowed is _ALLOWED else f"{key} [delta recomputed]"
            tally.scalar(label, value, said[key], allowed, job)
    left = {"UkT_safe": keep.left.double().T @ full, "safe_Vk": full @ keep.right.double()}
    for key, product in left.items():
        if isinstance(said.get(key), int | float):
            error = abs(float(torch.linalg.norm(product)) - said[key]) / ours["norm_delta"]
            tally.add(f"{key} (zero)", error, _ALLOWED, job)


CHECK = Check("REVIVE", ("REVIVE.safetensors", "revive_and_spectral.json"), run)
