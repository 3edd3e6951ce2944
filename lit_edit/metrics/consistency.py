"""Consistency of generated text with reference text as a torchmetric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_edit.metrics.text import TfIdf


class Consistency(Metric):
    r"""Mean over records of the TF-IDF cosine between all that was generated for a record and all its reference texts.

    .. math:: \frac{1}{|R|} \sum_{r \in R} \cos\left(v(\text{generated}_r), v(\text{reference}_r)\right)

    Reference texts are about things that truly have the new answer (Meng et al. 2022), so that text about an edited subject
    should come to read like them. Tables print it times 100. Both sides are joined with blanks, as the released code does.
    Records without a text on either side are left out; generated text without one known word scores 0.

    As input: per record, its generated texts; per record, its reference texts. As output: a float64 scalar, ``nan`` if no
    record counted.

    Args:
        tfidf: vocabulary and idf; see :meth:`lit_edit.metrics.text.TfIdf.fit`.
        **kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if the two lists differ in length.

    Example:
        >>> consistency = Consistency(TfIdf.fit(["cat sat", "cat ran"]))
        >>> consistency.update([["the cat", "cat"], ["x"]], [["cat sat"], []])
        >>> round(float(consistency.compute()), 4)
        0.5797
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    # Names of their own: a collection merges metrics whose states have equal names and happen to be equal.
    cosine_total: Tensor
    cosine_records: Tensor

    def __init__(self, tfidf: TfIdf, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tfidf = tfidf
        self.add_state("cosine_total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cosine_records", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, generated: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> None:
        """Add records."""
        if len(generated) != len(reference):
            raise ValueError(f"{len(generated)} records of generated and {len(reference)} of reference texts do not pair up")
        pairs = [
            (" ".join(ours), " ".join(theirs)) for ours, theirs in zip(generated, reference, strict=True) if ours and theirs
        ]
        self.cosine_total += sum(self.tfidf.cosine(ours, theirs) for ours, theirs in pairs)
        self.cosine_records += len(pairs)

    def compute(self) -> Tensor:
        """The consistency so far."""
        return self.cosine_total / self.cosine_records

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values; needs matplotlib."""
        return self._plot(val, ax)
