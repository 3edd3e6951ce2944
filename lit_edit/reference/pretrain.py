"""Pre-training of the reference model.

How a small model comes to store facts where an editor can find them is told in :mod:`lit_edit.pretraining.module`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_edit.pretraining.measures import Item, accuracy
from lit_edit.pretraining.module import Pretrainer


class FactsPretrainer(Pretrainer):
    """A small causal language model that learns true facts; its options are those of the base class."""

    report: str | None = None
    """What the trained model knows, as tables, once it was written down."""

    def prepare(self) -> int:
        """See :meth:`lit_edit.pretraining.module.Pretrainer.prepare`: one score for every object that occurs."""
        knowledge = self.data.knowledge
        number = {name: i for i, name in enumerate(knowledge.objects())}
        true: dict[str, dict[int, None]] = {subject: {} for subject in knowledge.subjects()}
        for fact in knowledge.facts:
            true[fact.subject][number[fact.object]] = None
        most = max(len(objects) for objects in true.values())
        table = torch.full((len(true), most), -1)
        for row, objects in enumerate(true.values()):
            table[row, : len(objects)] = torch.tensor(list(objects))
        self.truth: Tensor
        self.register_buffer("truth", table, persistent=False)  # [subjects, most], -1 where there are fewer
        return len(number)

    def auxiliary_loss(self, scores_MC: Tensor, subject_M: Tensor) -> Tensor:
        r"""Cross-entropy with the uniform distribution over what is true of each subject.

        .. math:: -\frac1M \sum_m \frac1{|O_m|} \sum_{o \in O_m} \log \mathrm{softmax}(s_m)_o
        """
        truth_MK = self.truth[subject_M]
        there_MK = truth_MK >= 0
        told_MK = scores_MC.float().log_softmax(-1).gather(1, truth_MK.clamp_min(0))
        return -((told_MK * there_MK).sum(1) / there_MK.sum(1)).mean()

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Share of right answers in one set of items."""
        name = ("facts", "facts_unseen_words", "skills")[batch_idx]
        right = accuracy(self.net, self.data.tokenizer, batch)
        self.log(f"val/{name}", right, prog_bar=True, batch_size=len(batch))

    def export(self, folder: Path) -> None:
        """Write the trained model as an ordinary folder, with what it was trained on and its report."""
        from lit_edit.reference.export import export

        steps, of = self.trainer.global_step, self.steps
        self.report = export(folder, self.net, self.data, dict(self.hparams), steps, of)
