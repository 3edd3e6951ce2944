"""What every study is: a question, its points, and a figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

Result = dict[str, Any]
"""What was measured at a point, plain JSON."""


@dataclass(frozen=True)
class Point:
    """One measurement of a study.

    Args:
        key: unique in the study, and readable: it is shown, written down, and the name of the point's folder.
        settings: everything that makes this point another one than its neighbours, plain JSON.
    """

    key: str
    settings: dict[str, Any] = field(default_factory=dict)


class Study(ABC):
    """Base of all studies. A study is built from plain settings, measures points one by one, and draws what it found.

    Points are independent of each other and of their order: they may be measured in several processes, on several devices, and
    by a run that goes on where an earlier one stopped. Whatever a study loads (a model, say) it loads when the first point asks
    for it, so that an object that has not measured yet can be sent to another process.
    """

    question: ClassVar[str]
    """What it asks, in one sentence."""

    @abstractmethod
    def common(self) -> dict[str, Any]:
        """What all points share, plain JSON: points measured under other settings are not mixed with these."""

    @abstractmethod
    def points(self) -> Sequence[Point]:
        """What is to be measured."""

    def begin(self, points: Sequence[Point], devices: Sequence[torch.device]) -> None:
        """Refuse what cannot be measured, prepare what the points share; by default nothing.

        Called once before the first point, in the process that started the study.

        Args:
            points: those still to be measured, at least one.
            devices: of the workers; several measure at the same time.

        Raises:
            EditError: if a point cannot be measured.
        """

    @abstractmethod
    def measure(self, point: Point, device: torch.device, folder: Path) -> Result:
        """Measure one point.

        Args:
            point: one of :meth:`points`.
            device: where to compute.
            folder: the point's own, for what is large or a run by itself; it may hold what an interrupted attempt left.
        """

    @abstractmethod
    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Rows of numbers from the results by key, which need not be complete: what the CSV holds and the terminal shows."""

    @abstractmethod
    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """Pictures by file name (without ending) from the results by key, which need not be complete."""
