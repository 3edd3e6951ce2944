"""How sure a number is: intervals by the bootstrap and by the normal approximation.

Legend: N = items, C = columns, B = resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Summary = Callable[[Tensor], dict[str, float]]
"""Numbers by name from the rows ``[n, columns]`` of some items."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def mean_interval(total: float, squares: float, count: float) -> Interval:
    r"""Interval of a mean of values in [0, 1] from their sum, sum of squares and number.

    .. math:: \bar x \pm 1.96\, s / \sqrt n, \qquad s^2 = \frac{\sum x^2 - n \bar x^2}{n - 1}

    cut to [0, 1]; all of [0, 1] for fewer than two values. Where all values are equal (nothing failed in ``n`` tries, say) the
    deviation is 0 and says too little, so one further try of the other kind is assumed: never narrower than ``1 / (n + 1)``.

    Example:
        >>> mean_interval(100.0, 100.0, 100.0)
        Interval(low=0.9900990099009901, high=1.0)
        >>> round(mean_interval(50.0, 50.0, 100.0).low, 4)
        0.4015
    """
    if count < 2:
        return Interval(0.0, 1.0)
    mean = total / count
    half = 1.96 * math.sqrt(max(squares - count * mean**2, 0.0) / (count - 1) / count)
    if half < 1 / (count + 1):
        half = 1 / (count + 1)
    return Interval(max(mean - half, 0.0), min(mean + half, 1.0))


def draws(count: int, resamples: int, seed: int) -> Tensor:
    """Indices of bootstrap samples, ``[resamples, count]``, from a generator of their own."""
    return torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))


def bootstrap(rows_NC: Tensor, summarise: Summary, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of every number of a summary, over resampled items.

    Args:
        rows_NC: what is kept of every item, ``[n, columns]``.
        summarise: numbers from such rows.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    if len(rows_NC) < 2:
        return {}
    found = [summarise(rows_NC[index]) for index in draws(len(rows_NC), resamples, seed)]
    return {name: _percentiles([one[name] for one in found]) for name in summarise(rows_NC)}


def paired_change(
    before_NC: Tensor, after_NC: Tensor, summarise: Summary, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of ``after - before`` for every number of a summary, the same items resampled on both sides.

    Pairing takes out what makes items easy or hard, so that a small change is told from noise with far fewer of them.

    Args:
        before_NC: rows of the unedited model.
        after_NC: rows of the same items, in the same order.
        summarise: numbers from such rows.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if the two hold different numbers of items.
    """
    if len(before_NC) != len(after_NC):
        raise ValueError(f"{len(before_NC)} items before and {len(after_NC)} after cannot be paired")
    if len(before_NC) < 2:
        return {}
    names = summarise(before_NC)
    changes: dict[str, list[float]] = {name: [] for name in names}
    for index in draws(len(before_NC), resamples, seed):
        first, second = summarise(before_NC[index]), summarise(after_NC[index])
        for name in names:
            changes[name].append(second[name] - first[name])
    return {name: _percentiles(values) for name, values in changes.items()}


def _percentiles(values: list[float]) -> Interval:
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if not len(known):
        return Interval(math.nan, math.nan)
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)
