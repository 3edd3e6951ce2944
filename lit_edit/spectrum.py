"""Singular subspaces of a weight matrix and how far editing has turned them.

Legend: O = d_out, I = d_in, M = min(d_out, d_in), K = protected directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_edit.micro_batches import enough_memory

Energy = Literal["sigma", "sigma2"]
RankRule = Literal["at_least", "released"]


@dataclass(frozen=True)
class Spectrum:
    """Thin singular value decomposition ``W = U diag(sigma) V^T`` of one weight."""

    left: Tensor  # [O, M], float32 columns u_i
    sigma: Tensor  # [M], float64, descending
    right: Tensor  # [I, M], float32 columns v_i

    def subspace(self, rank: int) -> Subspace:
        """The dominant ``rank`` directions of both sides."""
        return Subspace(self.left[:, :rank], self.right[:, :rank])

    def condition_number(self) -> float:
        """sigma_max / sigma_min; ``inf`` for a singular weight."""
        smallest = float(self.sigma[-1])
        return float(self.sigma[0]) / smallest if smallest > 0 else float("inf")


@dataclass(frozen=True)
class Subspace:
    """Orthonormal bases of a left and a right subspace."""

    left: Tensor  # [O, K]
    right: Tensor  # [I, K]

    @property
    def rank(self) -> int:
        """Number of directions on the left (the right may hold another number)."""
        return self.left.shape[1]


def decompose(weight_OI: Tensor) -> Spectrum:
    """Thin SVD in float64 through the Gram matrix of the smaller side.

    One ``[m, m]`` symmetric eigenproblem (m = min(d_out, d_in)) instead of a rectangular SVD: 1e12 instead of 1e13
    operations for a 4096 x 14336 matrix. Dominant directions, which is what the guards need, come out at full float64
    accuracy; singular values below ``1e-7 * sigma_max`` are noise of the squaring: they are
    set to zero, and so are their vectors on the longer side.

    Args:
        weight_OI: ``[d_out, d_in]``, any floating dtype.
    """
    left, sigma, right = gram_svd(weight_OI.detach().double())
    return Spectrum(left.float(), sigma, right.float())


def gram_svd(matrix_OI: Tensor, choose: Callable[[Tensor], int] = len) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples through the Gram matrix of the smaller side, see :func:`decompose`.

    Args:
        matrix_OI: ``[d_out, d_in]``, float64.
        choose: how many to return, given all singular values ``[m]``, descending; default: all.

    Returns:
        Left ``[d_out, n]``, singular values ``[n]``, right ``[d_in, n]``, float64.
    """
    short_first = matrix_OI if matrix_OI.shape[0] <= matrix_OI.shape[1] else matrix_OI.T
    size = " x ".join(map(str, matrix_OI.shape))
    with enough_memory(f"the singular values of a matrix of {size} in float64", "the CPU or a larger device helps"):
        values, vectors = torch.linalg.eigh(short_first @ short_first.T)
        count = choose(_roots(values.flip(0)))
        return triples(matrix_OI, values.flip(0)[:count], vectors.flip(1)[:, :count])


def triples(matrix_OI: Tensor, values: Tensor, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triples from leading eigenpairs of the Gram matrix of the smaller side.

    Args:
        matrix_OI: ``[d_out, d_in]``, float64.
        values: eigenvalues ``[n]``, descending, from the largest on.
        short: their vectors, ``[min(d_out, d_in), n]``.

    Returns:
        As :func:`gram_svd`.
    """
    wide = matrix_OI.shape[0] <= matrix_OI.shape[1]
    sigma = _roots(values)
    reliable = sigma > 0
    # Safe divisor: the vectors of unreliable values are zeroed right after.
    long = ((matrix_OI if wide else matrix_OI.T).T @ short) / torch.where(reliable, sigma, torch.ones_like(sigma))
    long = torch.where(reliable, long, torch.zeros_like(long))
    return (short, sigma, long) if wide else (long, sigma, short)


def _roots(values: Tensor) -> Tensor:
    """Singular values from eigenvalues of a Gram matrix, descending; what squaring has made noise is zero."""
    sigma = values.clamp_min(0).sqrt()
    return torch.where(sigma > 1e-7 * sigma[:1], sigma, torch.zeros_like(sigma))


def energy_rank(sigma: Tensor, share: float, energy: Energy = "sigma", rule: RankRule = "at_least") -> int:
    r"""How many leading directions hold a given share of the spectral energy.

    .. math:: k = \min\{k : \sum_{i \le k} \sigma_i^p \ge \tau \sum_i \sigma_i^p\}, \qquad p = 1 \text{ or } 2

    Args:
        sigma: singular values, descending.
        share: tau in (0, 1).
        energy: ``sigma`` (the paper, arXiv 2601.11042, sums singular values) or ``sigma2``.
        rule: ``at_least`` as above; ``released`` gives the reported rule of the authors' supplementary code,
            the *index* of the first cumulative share above tau, so one direction fewer and none when the first
            direction already exceeds tau.
    """
    sigma = sigma.double().cpu()  # a few thousand numbers; cumsum on a GPU has no deterministic form in older torch
    mass = sigma if energy == "sigma" else sigma**2
    cumulative = mass.cumsum(0) / mass.sum()
    if rule == "released":
        return int((cumulative <= share).sum())
    return min(int((cumulative < share).sum()) + 1, len(mass))


def leading_share(weight_OI: Tensor, top: float = 0.05) -> float:
    r"""How steep a spectrum is: share of the leading singular values in the sum of all.

    .. math:: \sum_{i \le k} \sigma_i \Big/ \sum_{i \le r} \sigma_i, \qquad k = \max(1, \mathrm{round}(\mathrm{top} \cdot r))

    Args:
        weight_OI: ``[d_out, d_in]``, of rank r at most ``min(d_out, d_in)``.
        top: share of the directions that are leading; of a flat spectrum they hold as much of the sum.

    Example:
        >>> round(leading_share(torch.diag(torch.tensor([3.0] + [1.0] * 19))), 3)
        0.136
    """
    sigma = torch.linalg.svdvals(weight_OI.double())
    return float(sigma[: max(1, round(top * len(sigma)))].sum() / sigma.sum())


def subspace_similarity(basis_a: Tensor, basis_b: Tensor) -> float:
    r"""LS, the low-rank subspace similarity: mean squared cosine of the principal angles of two k-dimensional subspaces.

    .. math:: \mathrm{LS} = \|A^T B\|_F^2 / k \in [0, 1]

    The formula of the paper's LS is not public; this standard definition is ours. A random pair gives about ``k / d``.

    Args:
        basis_a: ``[d, k]``, orthonormal columns.
        basis_b: ``[d, k]``, orthonormal columns.
    """
    return float((basis_a.double().T @ basis_b.double()).square().sum() / max(basis_a.shape[1], 1))


def vector_similarity(basis_a: Tensor, basis_b: Tensor) -> float:
    r"""SS, the singular vector similarity: mean absolute cosine of the vectors of equal rank.

    .. math:: \mathrm{SS} = \frac1k \sum_{i \le k} |\langle a_i, b_i \rangle| \in [0, 1]

    Definition ours, as for :func:`subspace_similarity`. It also falls when two nearly equal singular values swap places.

    Args:
        basis_a: ``[d, k]``.
        basis_b: ``[d, k]``.
    """
    if basis_a.shape[1] == 0:
        return 1.0
    return float((basis_a.double() * basis_b.double()).sum(0).abs().mean())


def triple_drift(original: Spectrum, weight_OI: Tensor, rank: int) -> float:
    r"""How far the weight has left the original's dominant singular triples; 0 while they are all intact.

    .. math:: \max_{i \le k} \max(\|W v_i - \sigma_i u_i\|, \|W^T u_i - \sigma_i v_i\|) / \sigma_i

    Unlike LS and SS it does not depend on *order*: new directions that outgrow the protected ones push them out of the
    top k although nothing happened to them.

    Args:
        original: spectrum of the original weight.
        weight_OI: the weight now.
        rank: number of dominant triples to look at.
    """
    if rank == 0:
        return 0.0
    weight = weight_OI.double()
    left, right, sigma = original.left[:, :rank].double(), original.right[:, :rank].double(), original.sigma[:rank]
    on_left = (weight @ right - sigma.to(weight.device) * left).norm(dim=0)
    on_right = (weight.T @ left - sigma.to(weight.device) * right).norm(dim=0)
    return float((torch.maximum(on_left, on_right) / sigma.to(weight.device)).max())


def protected_share(delta_OI: Tensor, subspace: Subspace) -> float:
    r"""Share of a change that meets a subspace: :math:`1 - \|(I-UU^T)\Delta(I-VV^T)\|_F^2 / \|\Delta\|_F^2`.

    Args:
        delta_OI: ``[d_out, d_in]``.
        subspace: the protected directions.
    """
    delta = delta_OI.double()
    total = float(delta.square().sum())
    if total == 0:
        return 0.0
    left, right = subspace.left.double(), subspace.right.double()
    safe = delta - left @ (left.T @ delta)
    safe = safe - (safe @ right) @ right.T
    return 1.0 - float(safe.square().sum()) / total
