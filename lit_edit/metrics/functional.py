"""Pure cores of the editing metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def record_mean(values: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    r"""Sum of per-record means and number of records that have any value.

    .. math:: \sum_r \frac{1}{|v_r|} \sum_{x \in v_r} x

    A record without values (no paraphrases, say) neither adds nor counts.

    Args:
        values: per record, one value per prompt.

    Returns:
        Two float64 scalars: sum and count.

    Example:
        >>> total, count = record_mean([[1.0, 0.0], [1.0], []])
        >>> float(total), float(count)
        (1.5, 2.0)
    """
    means = [sum(record) / len(record) for record in values if len(record)]
    return torch.tensor(sum(means), dtype=torch.float64), torch.tensor(float(len(means)), dtype=torch.float64)


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; 0 as soon as one value is 0.

    Example:
        >>> harmonic_mean([1.0, 0.5])
        0.6666666666666666
        >>> harmonic_mean([1.0, 0.0])
        0.0
    """
    if not values or any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)
