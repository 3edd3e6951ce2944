"""The six label tasks that sequential editing papers report: SST-2, MRPC, CoLA, RTE, NLI, MMLU.

Prompts are those of the released code (AlphaEdit's ``glue_eval``, after Gupta et al. 2024), character by character; published
tables plot ``f1/generated`` over 100 items. What ``legacy`` brings back is said at each task. In any mode an answer is decoded
greedily with nothing of the checkpoint's own generation settings, and a prompt that is too long loses its beginning; the
released code takes the context length from a table of model names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_edit.probes.agreement import INVALID
from lit_edit.probes.choice import LabelTask
from lit_edit.probes.source import exact_text, exact_texts, label

_SENTENCE = "the sentence that is asked about"
_BINARY: dict[str | int, int] = {0: 0, 1: 1}
_ENTAILMENT: dict[str | int, int] = {"not_entailment": 0, "entailment": 1}
_GLUE_ENTAILMENT: dict[str | int, int] = {0: 1, 1: 0}  # in GLUE's numbering 0 is entailment
_NO_YES = (("yes", 1), ("no", 0))


class SST2(LabelTask):
    """Sentiment of reviews: ``sentence``, ``label`` (1 = positive). ``legacy``: "positive" anywhere wins over "negative"."""

    task, fields = "sst2", ("sentence", "label")
    answers = ("negative", "positive")
    searched, marker = (("positive", 1), ("negative", 0)), "Sentiment :"

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        return f"Review :{exact_text(row, 'sentence', 'the review')}\nSentiment :"

    def shot(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.shot`; as published, examples have a blank that the question lacks."""
        return f"Review : {row['sentence']}\nSentiment : {self.answers[self.gold(row)]}\n"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "label", _BINARY)


class MRPC(LabelTask):
    """Paraphrases: ``sentence1``, ``sentence2``, ``label`` (1 = paraphrase). ``legacy``: "not" and "know" are a "no"."""

    task, fields = "mrpc", ("sentence1", "sentence2", "label")
    answers = ("No", "Yes")
    searched, marker = _NO_YES, "Answer:"

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        first, second = (exact_text(row, field, "one of the two sentences") for field in self.fields[:2])
        return f"Are the sentences paraphrases of each other.\nSentence 1: {first}\nSentence 2: {second}\nAnswer:"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "label", _BINARY)


class CoLA(LabelTask):
    """Acceptability of sentences: ``sentence``, ``label`` (1 = acceptable). ``legacy``: "not" and "know" are a "no"."""

    task, fields = "cola", ("sentence", "label")
    answers = ("No", "Yes")
    searched, marker = _NO_YES, "Answer:"

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`; the blank at the end is the published one."""
        sentence = exact_text(row, "sentence", _SENTENCE)
        return f"Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer: "

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "label", _BINARY)


class RTE(LabelTask):
    """Textual entailment: ``sentence1``, ``sentence2``, ``label`` (GLUE's: 0 = entailment, so "True"; or the names).

    ``legacy``: label 0 is read as "False" and 1 as "True", the reverse of what they mean, so that a healthy model scores below
    chance (a published F1 of 0.28); it also turns the examples round. "false" anywhere wins over "true".
    """

    task, fields = "rte", ("sentence1", "sentence2", "label")
    answers = ("False", "True")
    searched, marker = (("false", 0), ("true", 1)), "answer:"

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        first, second = (exact_text(row, field, "premise or hypothesis") for field in self.fields[:2])
        return f"{first}\nquestion: {second} True or False?\nanswer:"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        right = label(row, "label", {**_GLUE_ENTAILMENT, **_ENTAILMENT})
        return 1 - right if self.legacy else right


class NLI(LabelTask):
    """Textual entailment: ``sentence1``, ``sentence2``, ``label`` ("entailment", "not_entailment", or GLUE's 0, 1).

    ``legacy``: "true" anywhere wins over "false".
    """

    task, fields = "nli", ("sentence1", "sentence2", "label")
    answers = ("False", "True")
    searched, marker = (("true", 1), ("false", 0)), "True or False? Answer:"

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        first, second = (exact_text(row, field, "premise or hypothesis") for field in self.fields[:2])
        return f"{first} entails the {second} True or False? Answer:"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "label", {**_ENTAILMENT, **_GLUE_ENTAILMENT})


class MMLU(LabelTask):
    r"""Multiple choice over 57 subjects: ``question``, ``choices`` (four), ``answer`` (0 to 3, or A to D).

    By default the answer is the first capital A to D that stands alone. ``legacy``: the first of "a\n", "b\n", "c\n", "d\n" in
    the lower-cased continuation, so that " A." is invalid and " B because\n" names nothing; two answers of equal likelihood are
    no answer.
    """

    task, fields = "mmlu", ("question", "choices", "answer")
    answers = ("A", "B", "C", "D")
    searched = (("a\n", 0), ("b\n", 1), ("c\n", 2), ("d\n", 3))

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        asked = exact_text(row, "question", "what is asked")
        choices = exact_texts(row, "choices", "the four possible answers", 4)
        listed = "".join(f"({letter}) {text}\n" for letter, text in zip(self.answers, choices, strict=True))
        return f"Question: {asked}\n{listed}Answer:"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "answer", {0: 0, 1: 1, 2: 2, 3: 3, "A": 0, "B": 1, "C": 2, "D": 3})

    def parsed(self, said: str) -> int:
        """See :meth:`LabelTask.parsed`; lower-case letters are words ("a") and no answers."""
        if self.legacy:
            return super().parsed(said)
        found = re.search(r"(?<!\w)([ABCD])(?!\w)", said)
        return INVALID if found is None else self.answers.index(found[1])

    def likeliest(self, nll_NK: Tensor) -> list[int]:
        """See :meth:`LabelTask.likeliest`."""
        best = super().likeliest(nll_NK)
        if not self.legacy:
            return best
        tied = (nll_NK == nll_NK.min(-1, keepdim=True).values).sum(-1) > 1
        return torch.where(tied, INVALID, torch.tensor(best)).tolist()
