"""What every general-ability probe is: a fixed set of items, and how a model does on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_edit.scoring import Scorer


class Probe(ABC):
    """Base of all probes. Items are fixed for a run; scoring never changes the model.

    What is kept of every item is a row of numbers (:attr:`columns`). The reported numbers are computed from the rows of all
    items, so that the same items on the unedited model give paired differences with intervals, and rows of several processes
    can be joined.
    """

    name: str
    """Name of the ability; its numbers are logged as ``probe/<name>/<scoring>/<decoding>``."""
    columns: tuple[str, ...]
    """What the numbers of an item's row are."""
    shown: str
    """The scoring that stands for the probe where there is room for one number, as :meth:`summarise` names it."""
    one_row_per_item: bool = True
    """Whether :meth:`measure` gives one row for each item; only then can the items of a batch be told apart afterwards."""
    higher_is_better: bool = True
    """Whether a larger number of :attr:`shown` is better."""

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """The items, in a fixed order."""

    @abstractmethod
    def measure(self, scorer: Scorer, items: Sequence[Any]) -> Tensor:
        """What is kept of some items, float64 ``[n, columns]`` on the CPU, in their order."""

    @abstractmethod
    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """The reported numbers by ``<scoring>/<decoding>``, from the rows ``[n, columns]`` of all items."""


class AnswerProbe(Probe):
    """Questions with one right answer each: the share whose every answer token is the argmax (teacher-forced).

    Args:
        name: name of the ability.
        pairs: ``(prompt, answer)``.
    """

    columns = ("correct",)
    shown = "accuracy/teacher_forced"

    def __init__(self, name: str, pairs: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self._pairs = tuple((str(prompt), str(answer)) for prompt, answer in pairs)

    def items(self) -> Sequence[tuple[str, str]]:
        """See :meth:`Probe.items`."""
        return self._pairs

    def measure(self, scorer: Scorer, items: Sequence[tuple[str, str]]) -> Tensor:
        """See :meth:`Probe.measure`."""
        return scorer.answers(items).correct.double()[:, None]

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`."""
        return {self.shown: float(outcomes[:, 0].mean()) if len(outcomes) else float("nan")}


def no_outcomes(probe: Probe) -> Tensor:
    """The rows of no items, ``[0, columns]``."""
    return torch.zeros(0, len(probe.columns), dtype=torch.float64)
