"""All editing rates of one protocol under their full names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import cast

from torch import Tensor, nn

from lit_edit.metrics.record_rate import RecordRate
from lit_edit.scoring import DECODING, RecordScores


class EditScores(nn.Module):
    """One :class:`RecordRate` per metric and scoring; every name says protocol, metric, scoring and decoding.

    Names read ``edit/<protocol>/<metric>/<scoring>/<decoding>``, e.g. ``edit/immediate/efficacy/success/teacher_forced``.
    Success compares probabilities, accuracy asks for every answer token to be the argmax, probability is
    ``exp(-NLL)`` of the new answer. The rates are separate metrics on purpose: a collection that merges equal states would
    copy one into another as soon as two of them tie.

    Args:
        protocol: when the edits are scored: ``before`` (the unedited model), ``immediate`` (right after their own batch) or
            ``so_far`` (all edits made up to now, on the weights of now).
    """

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol
        self.rates = nn.ModuleDict({field.name: RecordRate() for field in fields(RecordScores)})

    @property
    def by_kind(self) -> dict[str, RecordRate]:
        """The rates by field of :class:`~lit_edit.scoring.RecordScores`."""
        return cast("dict[str, RecordRate]", dict(self.rates.items()))  # a ModuleDict forgets what it holds

    def update(self, records: Sequence[RecordScores]) -> None:
        """Add scored records."""
        for kind, rate in self.by_kind.items():
            rate.update([getattr(record, kind) for record in records])

    def compute(self) -> dict[str, Tensor]:
        """Rates by name, for those kinds that any record had."""
        found = {}
        for kind, rate in self.by_kind.items():
            if float(rate.records) > 0:
                metric, _, scoring = kind.partition("_")
                found[f"edit/{self.protocol}/{metric}/{scoring}/{DECODING}"] = rate.compute()
        return found
