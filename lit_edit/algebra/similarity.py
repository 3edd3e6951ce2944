"""Agreement of singular subspaces beyond LS and SS: principal angles, and matches wherever they stand in the order.

Legend: O = d_out, I = d_in, M = min(d_out, d_in), K = dominant directions, R = rows, C = columns.
"""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from lit_edit.spectrum import Spectrum, Subspace


def stable_rank(frobenius: float, largest: float) -> float:
    r"""Stable rank :math:`\|A\|_F^2 / \sigma_1^2 \in [1, M]`; 0 for a matrix that is zero.

    Example:
        >>> stable_rank(5.0, 4.0)
        1.5625
    """
    return frobenius**2 / largest**2 if largest > 0 else 0.0


def effective_rank(sigma: Tensor) -> float:
    r"""Exponential of the entropy of the normalised singular values; 0 where all are zero.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big) \in [1, M], \qquad p_i = \sigma_i / \sum_j \sigma_j

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        sigma: singular values ``[M]``; zeros count for nothing.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
        2.0
    """
    positive = sigma[sigma > 0].double()
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return float((-(shares * shares.log()).sum()).exp())


def principal_angles(basis_a: Tensor, basis_b: Tensor) -> Tensor:
    r"""Principal angles between two ``k``-dimensional subspaces of one space, in degrees, ascending, ``[k]``.

    Cosines are the singular values of :math:`A^T B`, sines those of :math:`(I - A A^T) B`; both together give small and large
    angles equally well (Björck and Golub 1973). Two random subspaces of a space of ``d >> k`` dimensions are nearly orthogonal.

    Args:
        basis_a: ``[d, k]``, orthonormal columns.
        basis_b: ``[d, k]``, orthonormal columns.
    """
    a, b = basis_a.double(), basis_b.double()
    inner = a.T @ b
    cosines = torch.linalg.svdvals(inner)
    sines = torch.linalg.svdvals(b - a @ inner).flip(0)[: len(cosines)]
    if len(sines) < len(cosines):  # fewer rows than columns: only the smallest sines are left out, and they are zero
        sines = torch.cat([sines.new_zeros(len(cosines) - len(sines)), sines])
    return torch.atan2(sines, cosines).rad2deg()


def matched_subspace_similarity(then: Subspace, now: Spectrum) -> float:
    r"""LS with whichever ``k`` singular triples of the weight lie best in the original dominant subspaces.

    .. math:: \max_{|J| = k} \frac1k \sum_{j \in J} \tfrac12 \big(\|U_k(0)^T u_j\|^2 + \|V_k(0)^T v_j\|^2\big) \in [0, 1]

    over *all* triples :math:`(u_j, v_j)` of the weight now, so that dominant triples which were only overtaken by larger ones
    still count as there: it is 1 exactly if ``k`` triples span both subspaces, and never below LS. The best J are the ``k``
    largest terms. Definition ours. By chance each term is about :math:`k/2\,(1/d_{out} + 1/d_{in})`; of all M of them the
    largest ``k`` are picked, so the baseline lies somewhat above that of LS.

    Args:
        then: dominant subspaces of the original weight.
        now: complete spectrum of the weight now.
    """
    if then.rank == 0:
        return 1.0
    left = (then.left.double().T @ now.left.double()).square().sum(0)
    right = (then.right.double().T @ now.right.double()).square().sum(0)
    return float(((left + right) / 2).topk(then.rank).values.mean())


def matched_vector_similarity(then: Subspace, now: Spectrum) -> float:
    r"""SS with every original triple compared with a triple of its own, wherever that stands in the order.

    .. math:: \max_{\pi} \frac1k \sum_{i \le k} \tfrac12 \big(|\langle u_i(0), u_{\pi(i)}\rangle| +
        |\langle v_i(0), v_{\pi(i)}\rangle|\big) \in [0, 1]

    over all ways :math:`\pi` to give the ``k`` original triples different triples of the weight now (:func:`assign`). It is 1
    exactly if all of them are still singular triples, and never below SS. Definition ours. By chance each cosine is about
    :math:`\sqrt{2 / (\pi d)}`; the best of M of them, which is what each triple picks, about :math:`\sqrt{2 \ln M / d}`.

    Args:
        then: dominant subspaces of the original weight.
        now: complete spectrum of the weight now.
    """
    if then.rank == 0:
        return 1.0
    left = (then.left.double().T @ now.left.double()).abs()
    right = (then.right.double().T @ now.right.double()).abs()
    agreement_KM = (left + right) / 2
    chosen = torch.tensor(assign(agreement_KM), device=agreement_KM.device)
    return float(agreement_KM.gather(1, chosen[:, None]).mean())


def assign(score_RC: Tensor) -> list[int]:
    """The columns, one of its own for every row, with the largest sum of scores.

    Shortest augmenting paths with potentials (Kuhn 1955; Jonker and Volgenant 1987), exact, at most ``R^2`` passes over the
    columns.

    Args:
        score_RC: ``[R, C]`` with ``R <= C``, finite.

    Example:
        >>> assign(torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.0]]))
        [1, 0]
    """
    cost = -score_RC.double().cpu().numpy()
    rows, columns = cost.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot have a column each of {columns}")
    # Row and column 0 stand for "none": a path begins in column 0 and ends in a column that no row has.
    of_row, of_column = numpy.zeros(rows + 1), numpy.zeros(columns + 1)
    owner, came_from = numpy.zeros(columns + 1, dtype=int), numpy.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        cheapest, done = numpy.full(columns + 1, math.inf), numpy.zeros(columns + 1, dtype=bool)
        while True:
            done[at] = True
            reduced = cost[owner[at] - 1] - of_row[owner[at]] - of_column[1:]
            better = ~done[1:] & (reduced < cheapest[1:])
            cheapest[1:][better], came_from[1:][better] = reduced[better], at
            following = int(numpy.where(done, math.inf, cheapest).argmin())
            step = cheapest[following]
            of_row[owner[done]] += step
            of_column[done] -= step
            cheapest[~done] -= step
            at = following
            if owner[at] == 0:
                break
        while at:
            owner[at] = owner[came_from[at]]
            at = int(came_from[at])
    found = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            found[owner[column] - 1] = column - 1
    return found
