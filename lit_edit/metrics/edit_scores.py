"""All editing rates of one protocol under their full names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lit_edit.batch.records import RecordScores
from lit_edit.metrics.functional import harmonic_mean
from lit_edit.metrics.record_rate import RecordRate
from lit_edit.metrics.statistics import Interval

_SCORE = ("efficacy", "paraphrase", "neighbourhood")


class EditScores(nn.Module):
    r"""One :class:`RecordRate` per metric and scoring; every name says protocol, metric, scoring and decoding.

    Names read ``edit/<protocol>/<metric>/<scoring>/<decoding>``, e.g. ``edit/immediate/efficacy/success/teacher_forced``; what
    the scorings are is said in :meth:`lit_edit.batch.records.Tally.judge`. Where efficacy, paraphrase and neighbourhood are all
    there, ``score`` is their harmonic mean (the literature's S), once for success and once for accuracy. The rates are
    separate metrics on purpose: a collection that merges equal states would copy one into another as soon as two of them tie.

    Args:
        protocol: when the edits are scored: ``before`` (the unedited model), ``immediate`` (right after their own batch),
            ``so_far`` (edits made up to now, on the weights of now) or ``final`` (all edits, on the final weights).
    """

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol
        self.rates = nn.ModuleDict()

    @property
    def by_name(self) -> dict[str, RecordRate]:
        """The rates by ``<metric>/<scoring>/<decoding>``."""
        return cast("dict[str, RecordRate]", dict(self.rates.items()))  # a ModuleDict forgets what it holds

    def update(self, records: Sequence[RecordScores]) -> None:
        """Add scored records."""
        for name in dict.fromkeys(name for record in records for name in record.values):
            if name not in self.rates:
                self.rates[name] = _rate()
            self.by_name[name].update([record.values.get(name, ()) for record in records])

    def compute(self) -> dict[str, Tensor]:
        """Rates by full name, for everything that any record had."""
        found = {name: rate.compute() for name, rate in sorted(self.by_name.items()) if float(rate.records) > 0}
        for scoring in ("accuracy", "success"):
            names = [f"{metric}/{scoring}/teacher_forced" for metric in _SCORE]
            if all(name in found for name in names):
                score = harmonic_mean([float(found[name]) for name in names])
                found[f"score/{scoring}/teacher_forced"] = torch.tensor(score, dtype=torch.float64)
        return {f"edit/{self.protocol}/{name}": value for name, value in found.items()}

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals over records by full name; differences, which are no rates in [0, 1], have none."""
        return {
            f"edit/{self.protocol}/{name}": rate.interval()
            for name, rate in sorted(self.by_name.items())
            if float(rate.records) > 0 and "/difference/" not in name
        }

    def sums(self) -> dict[str, list[float]]:
        """The rates as plain numbers, for a checkpoint."""
        return {name: [float(rate.total), float(rate.squares), float(rate.records)] for name, rate in self.by_name.items()}

    def take_up(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Go on from :meth:`sums`."""
        for name, (total, squares, records) in sums.items():
            rate = self.rates[name] = _rate()
            rate.total.fill_(total)
            rate.squares.fill_(squares)
            rate.records.fill_(records)
            rate._update_count = 1  # torchmetrics warns about computing a metric that was never updated


def _rate() -> RecordRate:
    """A rate of its own: the ranks of a run share the scoring itself, and all of them have every record."""
    return RecordRate(sync_on_compute=False)
