"""Editing rates as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_edit.metrics.functional import record_means
from lit_edit.metrics.statistics import Interval, mean_interval


class RecordRate(Metric):
    r"""Mean over records of the mean over a record's prompts.

    .. math:: \frac{1}{|R|} \sum_{r \in R} \frac{1}{|v_r|} \sum_{x \in v_r} x

    Efficacy, paraphrase and neighbourhood scores are this rate over their own prompts (editing literature since Meng et al.
    2022). Records without prompts of the kind are left out.

    As input: per record, a sequence with one value per prompt. As output: a float64 scalar, ``nan`` if no record counted.

    Example:
        >>> rate = RecordRate()
        >>> rate.update([[1.0, 0.0], [1.0]])
        >>> float(rate.compute())
        0.75
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    squares: Tensor
    records: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("records", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Sequence[Sequence[float]]) -> None:
        """Add records."""
        means = record_means(values)
        self.total += means.sum().to(self.total)
        self.squares += means.square().sum().to(self.squares)
        self.records += len(means)

    def compute(self) -> Tensor:
        """The rate so far."""
        return self.total / self.records

    def interval(self) -> Interval:
        """A 95 % interval of the rate over records, for values in [0, 1].

        See :func:`lit_edit.metrics.statistics.mean_interval`.
        """
        return mean_interval(float(self.total), float(self.squares), float(self.records))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values; needs matplotlib."""
        return self._plot(val, ax)
