"""What editing has done to one weight: its size, its spectrum, its dominant subspaces, and what the last batch did.

Legend: O = d_out, I = d_in, K = dominant directions, M = min(d_out, d_in), R = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.algebra.leading import EXACT_SIDE, leading_triples, singular_values, spectral_norm
from lit_edit.algebra.similarity import (
    effective_rank,
    matched_subspace_similarity,
    matched_vector_similarity,
    principal_angles,
    stable_rank,
)
from lit_edit.delta import Delta
from lit_edit.spectrum import Spectrum, Subspace, decompose, energy_rank, subspace_similarity, vector_similarity

GROUPS: Mapping[str, tuple[str, ...]] = {
    "size": ("norm", "relative_norm", "delta_norm", "last_delta_norm", "sigma_max", "delta_sigma_max", "last_delta_sigma_max"),
    "conditioning": (
        "condition_number",
        "stable_rank",
        "effective_rank",
        "delta_condition_number",
        "delta_stable_rank",
        "delta_effective_rank",
        "delta_rank",
    ),
    "dominant subspace": (
        "ls",
        "ls_left",
        "ls_right",
        "ls_matched",
        "ss",
        "ss_left",
        "ss_right",
        "ss_matched",
        "triple_drift",
        "protected_share",
    ),
    "angles": ("angle_max_left", "angle_max_right", "angle_mean_left", "angle_mean_right"),
    "batch to batch": ("delta_cosine", "key_cosine_max", "key_cosine_mean", "key_memory_share"),
}
"""What is measured, in the groups that are shown together."""

MEASURES = tuple(name for names in GROUPS.values() for name in names)
"""Names of all measures; each is explained in docs/spectra.md."""


@dataclass(frozen=True)
class Drift:
    """What was found of one weight."""

    measures: dict[str, float]
    """By the names of :data:`MEASURES`; what was not computed is missing."""
    then: Subspace
    """The original's dominant subspaces."""
    spectrum: Spectrum | None
    """The weight's own, where it was decomposed in full."""


def drift(original: Spectrum, original_weight: Tensor, weight: Tensor, tau: float, full: bool = True) -> dict[str, float]:
    r"""Spectral measures of one edited weight ``[d_out, d_in]``, see :func:`examine`."""
    return examine(original, original_weight, weight, tau, full).measures


@torch.no_grad()
def examine(original: Spectrum, original_weight: Tensor, weight: Tensor, tau: float, full: bool = True) -> Drift:
    r"""Spectral measures of :math:`W_t = W_0 + \Delta`, all ``[d_out, d_in]``.

    The dominant subspaces are those of the ``k`` leading triples, ``k`` the rank that holds a share ``tau`` of the singular
    values of :math:`W_0`. What needs the leading triples only comes from :func:`lit_edit.algebra.leading.leading_triples`; what
    needs all singular values is there if ``full``, and for a matrix that is small anyway
    (:data:`lit_edit.algebra.leading.EXACT_SIDE`). No measure is an estimate: it is exact to the tolerances of
    :mod:`lit_edit.algebra.leading`, or missing.

    Args:
        original: spectrum of the original weight.
        original_weight: that weight.
        weight: the weight now.
        tau: see :func:`lit_edit.spectrum.energy_rank`.
        full: whether all singular values are to be found, too.

    Returns:
        Of :data:`MEASURES`, those that two weights tell; ``triple_drift`` uses :math:`W_0 v_i = \sigma_i u_i`:
        :math:`\max_i \max(\|\Delta v_i\|, \|\Delta^T u_i\|) / \sigma_i`.
    """
    rank = energy_rank(original.sigma, tau)
    then = Subspace(original.left[:, :rank].to(weight.device), original.right[:, :rank].to(weight.device))
    change = weight - original_weight
    norm, delta_norm = _norm(weight), _norm(change)
    found: dict[str, float] = {"norm": norm, "relative_norm": norm / _norm(original_weight), "delta_norm": delta_norm}
    spectrum: Spectrum | None = None
    if full or min(weight.shape) <= EXACT_SIDE:
        spectrum = decompose(weight)
        now = spectrum.subspace(rank)
        found |= {
            "sigma_max": float(spectrum.sigma[0]),
            "condition_number": spectrum.condition_number(),
            "effective_rank": effective_rank(spectrum.sigma),
            "ls_matched": matched_subspace_similarity(then, spectrum),
            "ss_matched": matched_vector_similarity(then, spectrum),
        }
        found |= _of_change(singular_values(change), weight, norm)
    else:
        left, leading, right = leading_triples(weight, rank)
        now = Subspace(left.float(), right.float())
        found |= {"sigma_max": float(leading[0]), "delta_sigma_max": spectral_norm(change)}
    found["stable_rank"] = stable_rank(norm, found["sigma_max"])
    if found["delta_sigma_max"] > 0:
        found["delta_stable_rank"] = stable_rank(delta_norm, found["delta_sigma_max"])
    found |= _of_subspaces(then, now) | _of_contact(change, delta_norm, then, original.sigma[:rank])
    return Drift({name: found[name] for name in MEASURES if name in found}, then, spectrum)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _of_change(sigma_M: Tensor, weight_OI: Tensor, norm: float) -> dict[str, float]:
    r"""Conditioning of the accumulated change over its numerical rank.

    A singular value counts if it exceeds :math:`2^{-23} \max(\max(d_{out}, d_{in})\,\sigma_1(\Delta), \|W_t\|_F)`: the first is
    what ``matrix_rank`` of NumPy allows float32 matrices (and so PRUNE's code, arXiv 2405.16821), the second what rounding
    the weights to float32 leaves in their difference.
    """
    found = {"delta_sigma_max": float(sigma_M[0])}
    kept = sigma_M[sigma_M > 2.0**-23 * max(max(weight_OI.shape) * float(sigma_M[0]), norm)]
    if not len(kept):
        return found
    condition = float(kept[0] / kept[-1])
    return found | {
        "delta_condition_number": condition,
        "delta_effective_rank": effective_rank(kept),
        "delta_rank": float(len(kept)),
    }


def _of_subspaces(then: Subspace, now: Subspace) -> dict[str, float]:
    """LS, SS and principal angles of both sides."""
    found = {}
    for side, a, b in (("left", then.left, now.left), ("right", then.right, now.right)):
        angles = principal_angles(a, b)
        found[f"ls_{side}"] = subspace_similarity(a, b)
        found[f"ss_{side}"] = vector_similarity(a, b)
        found[f"angle_max_{side}"], found[f"angle_mean_{side}"] = float(angles[-1]), float(angles.mean())
    return found | {name: (found[f"{name}_left"] + found[f"{name}_right"]) / 2 for name in ("ls", "ss")}


def _of_contact(change_OI: Tensor, delta_norm: float, then: Subspace, sigma_K: Tensor) -> dict[str, float]:
    r"""How the change meets the dominant directions, from :math:`\Delta V` and :math:`U^T \Delta` alone.

    See :func:`lit_edit.spectrum.triple_drift` and :func:`lit_edit.spectrum.protected_share`;
    :math:`\|\Delta\|^2 - \|(I - UU^T) \Delta (I - VV^T)\|^2 = \|U^T \Delta\|^2 + \|(I - UU^T) \Delta V\|^2`.
    """
    change, left, right = change_OI.double(), then.left.double(), then.right.double()
    on_right_OK, on_left_KI = change @ right, left.T @ change
    moved = torch.maximum(on_right_OK.norm(dim=0), on_left_KI.norm(dim=1)) / sigma_K.to(change.device)
    rest_OK = on_right_OK - left @ (left.T @ on_right_OK)
    inside = float(on_left_KI.square().sum() + rest_OK.square().sum())
    return {"triple_drift": float(moved.max()), "protected_share": inside / delta_norm**2 if delta_norm > 0 else 0.0}


def sizes(delta: Delta) -> tuple[float, float]:
    """Frobenius and spectral norm of one change; of thin factors, from the QR of both and a small core."""
    if not delta.is_low_rank:
        dense = delta.dense()
        return _norm(dense), spectral_norm(dense)
    left, right = (factor.double() for factor in delta.factors)
    core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T
    sigma = torch.linalg.svdvals(core)
    return float(sigma.norm()), float(sigma[0]) if len(sigma) else 0.0


def cosine(a: Delta, b: Delta) -> float | None:
    r"""Cosine of two changes as vectors, :math:`\langle A, B\rangle_F / (\|A\|_F \|B\|_F)`; ``None`` if one is zero.

    Thin factors are never multiplied out: :math:`\langle L R, L' R' \rangle = \langle L^T L', R R'^T \rangle`.
    """
    lengths = float(a.norm()) * float(b.norm())
    if not lengths > 0:
        return None
    if a.is_low_rank and b.is_low_rank:
        (left_a, right_a), (left_b, right_b) = (tuple(part.double() for part in one.factors) for one in (a, b))
        return float(((left_a.T @ left_b) * (right_a @ right_b.T)).sum()) / lengths
    return float((a.dense().double() * b.dense().double()).sum()) / lengths
