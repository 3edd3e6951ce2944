"""The leading singular triples of a large matrix, without a full decomposition.

Legend: O = d_out, I = d_in, M = min(d_out, d_in), L = max(d_out, d_in), K = triples wanted, B = width of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.spectrum import gram_svd, triples

EXACT_SIDE = 2048
"""Up to this smaller side a full decomposition is as cheap as an iteration, and is what is done."""

TOLERANCE = 1e-6
"""Largest angle, in radians, between a leading singular vector as found and as it is."""

_WIDTH = 48  # columns of a block: wide enough for fast products, narrow enough for a high degree
_FLOOR = 1e-13  # residuals relative to the largest eigenvalue that rounding does not let fall further
_NORM_TOLERANCE = 1e-9


def leading_triples(matrix_OI: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The ``count`` leading singular triples, every vector within :data:`TOLERANCE` of the exact one.

    Small matrices (``M <= EXACT_SIDE``) and large shares (``count > M / 8``) are decomposed in full. Otherwise a block Krylov
    space of the Gram matrix :math:`G` of the smaller side is built from a seeded block, with full reorthogonalisation, and
    Ritz pairs :math:`(\theta_i, x_i)` are taken from it (Rayleigh-Ritz) until two things hold:

    1. :math:`\|G x_i - \theta_i x_i\| \le \frac12 \epsilon\, g_i` for all :math:`i \le K`, with :math:`g_i` the distance of
       :math:`\theta_i` to its neighbours, so that the angle of :math:`x_i` to the eigenvector is below
       :math:`\epsilon` (Davis and Kahan 1970).
    2. :math:`\mu I - G + \sum_{i \le K} \theta_i x_i x_i^T` with :math:`\mu = (\theta_K + \theta_{K+1}) / 2` has a Cholesky
       factor, so that nothing above :math:`\mu` was missed: the pairs *are* the leading ones.

    Where that is not reached (singular values that coincide, more dimensions than 5/8 M), the Gram matrix is decomposed in
    full. The result is a function of the matrix and ``count`` alone: nothing is carried over from an earlier call.

    Args:
        matrix_OI: ``[d_out, d_in]``, any floating dtype; all arithmetic is float64.
        count: how many, at most M.

    Returns:
        Left ``[d_out, count]``, singular values ``[count]``, right ``[d_in, count]``, float64.
    """
    matrix = matrix_OI.detach().double()
    wide = matrix.shape[0] <= matrix.shape[1]
    short_first = matrix if wide else matrix.T
    side = len(short_first)
    if side <= EXACT_SIDE or 8 * count > side:
        return gram_svd(matrix, lambda _: count)
    gram_MM = gram(short_first)
    found = leading_eigenpairs(gram_MM, count)
    if found is None:
        values, vectors = torch.linalg.eigh(gram_MM)
        found = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return triples(matrix, *found)


def gram(matrix_ML: Tensor) -> Tensor:
    """``A A^T`` of a float64 matrix, ``[M, M]``; the half that symmetry gives is not computed."""
    side, step = len(matrix_ML), 512
    result = matrix_ML.new_empty(side, side)
    for start in range(0, side, step):
        end = min(start + step, side)
        part = matrix_ML[start:end] @ matrix_ML[:end].T
        result[start:end, :end] = part
        result[:end, start:end] = part.T
    return result


def leading_eigenpairs(gram_MM: Tensor, count: int, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor] | None:
    """The ``count`` largest eigenvalues, descending, and their vectors ``[M, count]``, or ``None`` if they are not certain.

    See :func:`leading_triples` for what makes them certain.

    Args:
        gram_MM: symmetric positive semi-definite, float64.
        count: how many.
        tolerance: largest angle of a vector to the exact one.
    """

    def miss(values: Tensor, residuals: Tensor) -> float:
        """How many times too large the worst residual is; ``inf`` until there are enough pairs."""
        if len(values) <= count:
            return math.inf
        return float((residuals[:count] / (tolerance / 2 * _gaps(values[: count + 1])).clamp_min(1e-300)).max())

    side = len(gram_MM)
    for ritz in _krylov(
        lambda block_MB: gram_MM @ block_MB, gram_MM, max(4, min(_WIDTH, side // 64)), side * 5 // 8, 3 * count, miss
    ):
        if ritz.miss > 1:
            if bool((ritz.residuals[:count] < _FLOOR * ritz.values[0]).all()) and len(ritz.values) > count:
                return None  # as exact as rounding lets it be, and still not enough: values coincide
            continue
        values, vectors_MK = ritz.values[:count], ritz.vectors(count)
        left_over = (gram_MM @ vectors_MK - vectors_MK * values).norm(dim=0)
        if miss(ritz.values, left_over) <= 1 and _none_missed(gram_MM, ritz.values, vectors_MK):
            return values, vectors_MK
    return None


def spectral_norm(matrix_OI: Tensor) -> float:
    """The largest singular value, to a relative ``1e-9``.

    From a small block Krylov space, products with the matrix only; from all singular values where the matrix is small
    (:data:`EXACT_SIDE`) or the iteration does not settle within 512 dimensions.

    Args:
        matrix_OI: ``[d_out, d_in]``, any floating dtype; all arithmetic is float64.
    """
    matrix = matrix_OI.detach().double()
    short_first = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = matrix.abs().max()
    if not scale > 0:
        return 0.0

    def miss(values: Tensor, residuals: Tensor) -> float:
        # The error of a Ritz value is bounded by its residual, and by its square over the gap (Temple and Kato).
        bound = torch.minimum(residuals[0], residuals[0].square() / (values[0] - values[1]).clamp_min(1e-300))
        return float(bound / (_NORM_TOLERANCE * values[0]))

    if len(short_first) > EXACT_SIDE:
        # Products with the block on the left: several times faster on a CPU than those with a transposed weight.
        for ritz in _krylov(lambda block_MB: ((block_MB.T @ short_first) @ short_first.T).T, short_first, 16, 512, 32, miss):
            if ritz.miss <= 1:
                return float(ritz.values[0].sqrt())
    return float(singular_values(matrix)[0])


def singular_values(matrix_OI: Tensor) -> Tensor:
    """All singular values ``[M]``, descending, float64; below ``1e-7`` of the largest, noise of the squaring, zero."""
    matrix = matrix_OI.detach().double()
    short_first = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    sigma = torch.linalg.eigvalsh(gram(short_first)).flip(0).clamp_min(0).sqrt()
    return torch.where(sigma > 1e-7 * sigma[0], sigma, torch.zeros_like(sigma))


@dataclass(frozen=True)
class _Ritz:
    """What a Krylov space knows of the eigenpairs."""

    values: Tensor  # [S], descending
    residuals: Tensor  # [S], norms
    vectors: Callable[[int], Tensor]  # the first n of them, [M, n]
    miss: float  # how many times too large the errors still are


def _krylov(
    apply: Callable[[Tensor], Tensor],
    like: Tensor,
    width: int,
    most: int,
    first: int,
    miss: Callable[[Tensor, Tensor], float],
) -> Iterator[_Ritz]:
    """Grows a block Krylov space of a symmetric operator, and yields what it knows now and then.

    Every look costs an eigenproblem of the size of the space, so the next one is due when the errors, falling as they did
    since the last one, have become small enough, and after a quarter of the size at the latest.

    Args:
        apply: the operator on ``[M, B]``.
        like: tensor whose length is M, and whose device and dtype are used.
        width: columns of a block.
        most: largest dimension of the space.
        first: dimension of the first look.
        miss: how many times too large the errors are, given Ritz values and residual norms.
    """
    side = len(like)
    seeded = torch.Generator().manual_seed(0)
    block_MB = torch.linalg.qr(torch.randn(side, width, generator=seeded, dtype=torch.float64).to(like)).Q
    basis, small = like.new_zeros(side, most), like.new_zeros(most, most)
    size, due, before = 0, max(first, 2 * width), (0, math.inf)
    while size + width <= most:
        image_MB = apply(block_MB)
        basis[:, size : size + width] = block_MB
        size += width
        space_MS = basis[:, :size]
        cross_SB = space_MS.T @ image_MB
        small[:size, size - width : size] = cross_SB
        small[size - width : size, :size] = cross_SB.T
        block_MB, outside_BB = torch.linalg.qr(image_MB - space_MS @ cross_SB)
        # Once more on unit columns: what a nearly closed space leaves over is rounding, and must become a new direction.
        block_MB = torch.linalg.qr(block_MB - space_MS @ (space_MS.T @ block_MB)).Q
        if size < due and size + width <= most:
            continue
        values, mixing = torch.linalg.eigh(small[:size, :size])
        values, mixing = values.flip(0), mixing.flip(1)
        residuals = (outside_BB @ mixing[-width:]).norm(dim=0)
        far = miss(values, residuals)
        yield _Ritz(values, residuals, lambda n, space=space_MS, mix=mixing: space @ mix[:, :n], far)  # type: ignore[misc]
        step = size / 4
        if 0 < far < before[1]:
            step = min(step, 1.1 * math.log(max(far, 1.0)) * (size - before[0]) / math.log(before[1] / far))
        before, due = (size, far), size + max(int(step), width)


def _gaps(values: Tensor) -> Tensor:
    """Distance of every value but the last to its nearest neighbour; values descend."""
    below = values[:-1] - values[1:]
    return torch.minimum(below, torch.cat([below.new_full((1,), torch.inf), below[:-1]]))


def _none_missed(gram_MM: Tensor, values: Tensor, vectors_MK: Tensor) -> bool:
    """Whether no eigenvalue besides those of the ``K`` pairs lies above the middle between the K-th value and the next."""
    count = vectors_MK.shape[1]
    middle = (values[count - 1] + values[count]) / 2
    rest_MM = (vectors_MK * values[:count]) @ vectors_MK.T - gram_MM
    rest_MM.diagonal().add_(middle)
    return int(torch.linalg.cholesky_ex(rest_MM).info) == 0
