"""Cohorts of edits and how their scores go on: what retention is computed from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_edit.data.loader import spread


def quota(index: int, span: int, most: int) -> int:
    """How many of the ``most`` edits of a cohort come from batch ``index`` of its ``span`` batches; the quotas sum to ``most``.

    >>> [quota(index, 4, 10) for index in range(4)]
    [2, 3, 2, 3]
    """
    return (index + 1) * most // span - index * most // span


def mean(values: Iterable[float]) -> float:
    """Mean, NaN of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def retention_curve(scores: Sequence[Sequence[float | None]], ages: Sequence[Sequence[int]]) -> dict[int, float]:
    r"""Mean score by age: :math:`R(a) = \mathrm{mean} \{ M_{tc} : a_{tc} = a \}`, for every age that occurs.

    Args:
        scores: :math:`M_{tc}`, ``[checkpoints][cohorts]``; ``None`` where a cohort was not scored.
        ages: :math:`a_{tc}`, of the same shape.

    Example:
        >>> retention_curve([[1.0, None], [0.5, 0.8]], [[0, 0], [1, 0]])
        {0: 0.9, 1: 0.5}
    """
    found: dict[int, list[float]] = {}
    for row, old in zip(scores, ages, strict=True):
        for value, age in zip(row, old, strict=True):
            if value is not None:
                found.setdefault(age, []).append(value)
    return {age: mean(found[age]) for age in sorted(found)}


@dataclass
class Written:
    """What one batch wrote; of it, the positions that are followed."""

    batch: int
    positions: list[int]


@dataclass
class Check:
    """The followed edits on the weights of one moment."""

    batch: int
    edits: int
    values: dict[int, float]
    """By stream position; edits without such a prompt are missing."""


@dataclass
class Cohorts:
    """Which edits are followed, and how they scored whenever they were looked at.

    Every batch that wrote anything is a cohort, until there are more than ``most``: then cohorts are joined in twos, the
    number of batches to a cohort doubles, and each keeps ``per_cohort`` of the edits that its parts had, so that the edits of a
    cohort are the same ones at every checkpoint, earlier ones included. Scores are kept by edit for that reason.
    """

    most: int
    per_cohort: int
    span: int = 1
    """Batches to a cohort."""
    wrote: list[Written] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def add(self, batch: int, positions: Sequence[int]) -> None:
        """A batch wrote these; one that wrote nothing is no cohort."""
        if not positions:
            return
        self.wrote.append(Written(batch, list(positions)))
        while -(-len(self.wrote) // self.span) > self.most:
            self.span *= 2
        for index, one in enumerate(self.wrote):
            share = min(quota(index % self.span, self.span, self.per_cohort), len(one.positions))
            one.positions = [one.positions[at] for at in spread(len(one.positions), share)]
        followed = set(self.positions())
        for check in self.checks:
            check.values = {at: value for at, value in check.values.items() if at in followed}

    def positions(self) -> list[int]:
        """Stream positions of everything that is followed."""
        return [at for one in self.wrote for at in one.positions]

    def groups(self) -> list[list[Written]]:
        """The batches of every cohort."""
        return [self.wrote[at : at + self.span] for at in range(0, len(self.wrote), self.span)]

    def matrix(self) -> list[list[float | None]]:
        """Mean score of every cohort at every checkpoint, ``[checkpoints][cohorts]``; ``None`` where it was not yet written."""
        found = []
        for check in self.checks:
            parts = [
                [check.values[at] for one in group for at in one.positions if at in check.values] for group in self.groups()
            ]
            found.append([mean(part) if part else None for part in parts])
        return found

    def ages(self) -> list[list[int]]:
        """Batches between the last batch of a cohort written by then and the checkpoint, ``[checkpoints][cohorts]``."""
        found = []
        for check in self.checks:
            latest = [
                max((one.batch for one in group if one.batch <= check.batch), default=check.batch) for group in self.groups()
            ]
            found.append([check.batch - batch for batch in latest])
        return found

    def numbers(self) -> dict[str, float]:
        """``first``, ``latest``, ``mean``, ``auc`` at the latest checkpoint; see :class:`RetentionScores`."""
        matrix = self.matrix()
        now = [value for value in matrix[-1] if value is not None]
        if not now:
            return {}
        curve = retention_curve(matrix, self.ages())
        return {"first": now[0], "latest": now[-1], "mean": mean(now), "auc": mean(curve.values())}

    def table(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        matrix, ages = self.matrix(), self.ages()
        return {
            "batches_per_cohort": self.span,
            "cohorts": [
                {
                    "first_batch": group[0].batch,
                    "last_batch": group[-1].batch,
                    "positions": [at for one in group for at in one.positions],
                }
                for group in self.groups()
            ],
            "checkpoints": [{"batches": check.batch, "edits": check.edits} for check in self.checks],
            "matrix": matrix,
            "age_in_batches": ages,
            "curve": [[age, value] for age, value in retention_curve(matrix, ages).items()],
            **self.numbers(),
        }

    def memory(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "span": self.span,
            "wrote": [[one.batch, list(one.positions)] for one in self.wrote],
            "checks": [[c.batch, c.edits, list(c.values), list(c.values.values())] for c in self.checks],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.span = int(memory["span"])
        self.wrote = [Written(batch, list(positions)) for batch, positions in memory["wrote"]]
        self.checks = [Check(b, e, dict(zip(positions, v, strict=True))) for b, e, positions, v in memory["checks"]]
