"""How well predicted labels agree with the right ones: confusion, weighted F1, Matthews correlation.

Legend: N = items, K = classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INVALID = -1
"""The prediction of an answer that names no class. It counts as one more class, which is never right."""


def confusion(label_N: Tensor, predicted_N: Tensor, classes: int) -> list[list[int]]:
    """Counts ``[1 + K][1 + K]`` by right class (row) and predicted class (column), class -1 first.

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, -1, 1]), 2)
        [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    """
    size = classes + 1
    cells = (label_N.long() + 1) * size + predicted_N.long() + 1
    flat = torch.bincount(cells, minlength=size * size).tolist()
    return [flat[row * size : (row + 1) * size] for row in range(size)]


def accuracy(counts: Sequence[Sequence[int]]) -> float:
    """Share of right predictions, ``nan`` of none."""
    total = sum(map(sum, counts))
    return sum(row[i] for i, row in enumerate(counts)) / total if total else math.nan


def weighted_f1(counts: Sequence[Sequence[int]]) -> float:
    r"""Mean of the classes' F1, weighted by how often they are right (scikit-learn's ``average="weighted"``).

    .. math:: \frac{1}{N} \sum_k n_k \frac{2\,TP_k}{2\,TP_k + FP_k + FN_k}

    The class of invalid answers is never right: its weight is 0, but it takes recall from the others.

    Example:
        >>> weighted_f1([[0, 0, 0], [0, 1, 0], [1, 0, 1]])  # F1 1 (once) and 2/3 (twice)
        0.7777777777777777
    """
    total = sum(map(sum, counts))
    if not total:
        return math.nan
    value = 0.0
    for k, row in enumerate(counts):
        support, predicted = sum(row), sum(other[k] for other in counts)
        if support:
            value += support * 2 * row[k] / (support + predicted)
    return value / total


def matthews(counts: Sequence[Sequence[int]]) -> float:
    r"""Matthews correlation of any number of classes (Gorodkin 2004, as in scikit-learn); 0 where one side is constant.

    .. math:: \frac{N \sum_k C_{kk} - \sum_k t_k p_k}{\sqrt{(N^2 - \sum_k p_k^2)(N^2 - \sum_k t_k^2)}}

    with :math:`t_k` how often class k is right and :math:`p_k` how often it is predicted.

    Example:
        >>> matthews([[0, 0, 0], [0, 1, 0], [0, 0, 1]]), matthews([[0, 0, 0], [0, 1, 0], [0, 1, 0]])
        (1.0, 0.0)
    """
    total = sum(map(sum, counts))
    if not total:
        return math.nan
    right = [sum(row) for row in counts]
    predicted = [sum(row[k] for row in counts) for k in range(len(counts))]
    hits = sum(row[k] for k, row in enumerate(counts))
    above = total * hits - sum(t * p for t, p in zip(right, predicted, strict=True))
    below = (total**2 - sum(p * p for p in predicted)) * (total**2 - sum(t * t for t in right))
    return above / math.sqrt(below) if below else 0.0


def label_numbers(label_N: Tensor, predicted_N: Tensor, classes: int) -> dict[str, float]:
    """``f1``, ``accuracy``, ``mcc`` and ``invalid`` (share of predictions that name no class)."""
    counts = confusion(label_N, predicted_N, classes)
    total = len(label_N)
    return {
        "f1": weighted_f1(counts),
        "accuracy": accuracy(counts),
        "mcc": matthews(counts),
        "invalid": sum(row[0] for row in counts) / total if total else math.nan,
    }
