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

    Attributes:
        name: name of the ability; logged as ``probe/<name>/<scoring>``.
        scoring: what the number is and how it was decoded.
    """

    name: str
    scoring: str

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """The items, in a fixed order."""

    @abstractmethod
    def measure(self, scorer: Scorer, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Value and weight per item, float tensors ``[n]``."""

    def summarise(self, mean: float) -> float:
        """The reported number, from the weighted mean over all items."""
        return mean


class AnswerProbe(Probe):
    """Questions with one right answer each: the share whose every answer token is the argmax (teacher-forced).

    Args:
        name: name of the ability.
        pairs: ``(prompt, answer)``.
    """

    scoring = "accuracy/teacher_forced"

    def __init__(self, name: str, pairs: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self._pairs = tuple((str(prompt), str(answer)) for prompt, answer in pairs)

    def items(self) -> Sequence[tuple[str, str]]:
        """See :meth:`Probe.items`."""
        return self._pairs

    def measure(self, scorer: Scorer, items: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """See :meth:`Probe.measure`."""
        return scorer.answers(items).correct.float(), torch.ones(len(items))
