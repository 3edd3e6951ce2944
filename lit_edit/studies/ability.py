"""How much general ability a changed model retains of the unedited one's, with intervals.

Legend: P = probes, N = items, C = columns, B = resamples, S = seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.metrics.statistics import draws
from lit_edit.probes.base import AnswerProbe, Probe

Rows = Mapping[str, Tensor]
"""What a probe keeps of its items, ``[n, columns]``, by the probe's name."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Ability:
    r"""Compares changed models with the unedited one on the same items.

    The ability that a model retains is the mean over probes of its number in shares of the unedited model's,

    .. math:: \frac1P \sum_j r_j, \qquad r_j = v_j / v_j^0 \quad (v_j^0 / v_j \text{ where lower is better}),

    where :math:`v_j` is the number that stands for probe j (:attr:`lit_edit.probes.Probe.shown`). A number that is not finite
    counts as nothing retained; a probe of which the unedited model has nothing to lose (:math:`v_j^0 \le 0`) is left out. The
    mean of ratios to the unedited score is ours; the paper on dominant directions (arXiv 2601.11042) speaks of a share of GLUE.

    Intervals are percentiles of a bootstrap that draws the same items of a probe on both sides (items are what makes numbers
    differ, and most of it cancels) and, where a number is a mean over seeds, the seeds as well.

    Args:
        probes: the abilities.
        unedited: rows of the unedited model.
        resamples: bootstrap samples.
    """

    def __init__(self, probes: Sequence[Probe], unedited: Rows, resamples: int = 500) -> None:
        self.probes, self.resamples = list(probes), resamples
        self.start = self.sample(unedited)

    def sample(self, rows: Rows) -> Tensor:
        """The number of every probe on all items and on every resample of them, ``[probes, 1 + resamples]``, float64."""
        found = []
        for probe in self.probes:
            own = rows[probe.name]
            drawn = [own, *(own[index] for index in draws(len(own), self.resamples, seed=0))]
            found.append([probe.summarise(part)[probe.shown] for part in drawn])
        return torch.tensor(found, dtype=torch.float64)

    def retained(self, samples: Sequence[Tensor]) -> Estimate:
        """The ability retained, mean over the runs of several seeds.

        Args:
            samples: of every run, from :meth:`sample`.
        """
        return self._estimate(self._shares(samples))

    def spread(self, samples: Sequence[Tensor]) -> float:
        """Standard deviation over seeds of the ability retained; NaN for a single run."""
        return float(self._shares(samples)[:, 0].std()) if len(samples) > 1 else float("nan")

    def number(self, name: str, samples: Sequence[Tensor]) -> Estimate:
        """The number of one probe, mean over seeds; its interval is that of the change since the unedited model."""
        at = [probe.name for probe in self.probes].index(name)
        values = torch.stack([sample[at] for sample in samples])
        start = float(self.start[at, 0])
        change = self._estimate(values - self.start[at])
        return Estimate(float(values[:, 0].mean()), start + change.low, start + change.high)

    def guess(self, name: str) -> float | None:
        """What always giving the most frequent answer would score; ``None`` where a probe's items are not questions."""
        probe = next(probe for probe in self.probes if probe.name == name)
        if not isinstance(probe, AnswerProbe):
            return None
        answers = Counter(answer for _, answer in probe.items())
        return answers.most_common(1)[0][1] / answers.total()

    def guesses(self) -> float | None:
        """The ability retained of one who always gives each probe's most frequent answer."""
        found = [self.guess(probe.name) for probe in self.probes]
        known = [guess / float(v) for guess, v in zip(found, self.start[:, 0], strict=True) if guess is not None and v > 0]
        return sum(known) / len(known) if known and None not in found else None

    def _shares(self, samples: Sequence[Tensor]) -> Tensor:
        """The ability retained in every run, ``[seeds, 1 + resamples]``."""
        lower = torch.tensor([not probe.higher_is_better for probe in self.probes])[:, None]
        values = torch.stack(list(samples))  # [S, P, 1 + B]
        shares = torch.where(lower, self.start / values, values / self.start)
        shares = torch.where(values[..., :1].isfinite(), shares, 0.0)
        known = (self.start[:, 0] > 0).nonzero()[:, 0]
        shares = shares[:, known]
        return torch.where(shares.isfinite(), shares, torch.nan).nanmean(1)

    def _estimate(self, values: Tensor) -> Estimate:
        """From ``[seeds, 1 + resamples]``."""
        seeds = draws(len(values), values.shape[1] - 1, seed=1)  # [B, S]
        resampled = values[:, 1:].T.gather(1, seeds).mean(1)
        low, high = resampled.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Estimate(float(values[:, 0].mean()), low, high)
