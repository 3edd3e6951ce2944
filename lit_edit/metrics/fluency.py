"""Fluency of generated text as a torchmetric."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_edit.metrics.functional import record_means
from lit_edit.metrics.text import text_entropy


def whole_text(prompt: str, continuation: str) -> str:
    r"""Prompt and continuation as the released ROME and MEMIT code scores them: decomposed Unicode (NFKD), no empty lines.

    Example:
        >>> whole_text("Rome is", " big.\n\nIt")
        'Rome is big. It'
    """
    return unicodedata.normalize("NFKD", prompt + continuation).replace("\n\n", " ")


class Fluency(Metric):
    r"""Mean over records of the mean n-gram entropy of a record's texts, in bits.

    .. math:: \frac{1}{|R|} \sum_{r \in R} \frac{1}{|T_r|} \sum_{t \in T_r} \tfrac12 (\tfrac23 H_2(t) + \tfrac43 H_3(t))

    Tables print it times 100 (about 620 for a healthy model). See :func:`lit_edit.metrics.text.text_entropy`. The published
    setting is one text per generation prompt, top-k sampled with k = 5, of 100 tokens with its prompt
    (``generate(..., 100, top_k=5, total=True)`` and :func:`whole_text`). Records without texts are left out.

    As input: per record, its texts. As output: a float64 scalar, ``nan`` if no record counted.

    Args:
        sentences_first: see :func:`lit_edit.metrics.words.words`.
        **kwargs: see :class:`torchmetrics.Metric`.

    Example:
        >>> fluency = Fluency()
        >>> fluency.update([["one two three", "a b"], []])
        >>> round(float(fluency.compute()), 4)
        0.1667
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    # Names of their own: a collection merges metrics whose states have equal names and happen to be equal.
    entropy_total: Tensor
    entropy_records: Tensor

    def __init__(self, sentences_first: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sentences_first = sentences_first
        self.add_state("entropy_total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropy_records", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, texts: Sequence[Sequence[str]]) -> None:
        """Add records."""
        means = record_means([[text_entropy(text, self.sentences_first) for text in record] for record in texts])
        self.entropy_total += means.sum().to(self.entropy_total)
        self.entropy_records += len(means)

    def compute(self) -> Tensor:
        """The fluency so far."""
        return self.entropy_total / self.entropy_records

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values; needs matplotlib."""
        return self._plot(val, ax)
