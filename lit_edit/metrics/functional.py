"""Pure cores of the editing metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def record_means(values: Sequence[Sequence[float]]) -> Tensor:
    r"""Mean over the prompts of every record that has any: :math:`\bar v_r = \frac{1}{|v_r|} \sum_{x \in v_r} x`.

    A record without values (no paraphrases, say) is left out.

    Args:
        values: per record, one value per prompt.

    Returns:
        Float64 ``[records]``.

    Example:
        >>> record_means([[1.0, 0.0], [1.0], []]).tolist()
        [0.5, 1.0]
    """
    return torch.tensor([sum(record) / len(record) for record in values if len(record)], dtype=torch.float64)


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
