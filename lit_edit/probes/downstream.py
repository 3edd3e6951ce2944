"""PRUNE's four downstream tasks: reasoning, summarisation, open-domain question answering, entailment.

Source: the released ``test_tasks.py`` of PRUNE (arXiv 2405.16821). Prompts and numbers of new tokens are published ones; the
default number of items is the published one too. Known mistakes of the released code come back under ``legacy`` and are named
at each task. Texts are continued greedily; a prompt that is too long loses its beginning.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_edit.data.reader import as_text, lookup
from lit_edit.errors import MalformedRecord
from lit_edit.probes.agreement import INVALID
from lit_edit.probes.base import Probe
from lit_edit.probes.choice import LabelTask, end_of
from lit_edit.probes.rouge import rouge
from lit_edit.probes.source import exact_text, exact_texts, label, read, taken, whole
from lit_edit.prompts import Encoder
from lit_edit.scoring import Scorer


@dataclass(frozen=True)
class Task:
    """One item: a prompt and the answers that count."""

    prompt: str
    accepted: tuple[str, ...]


class GenerationTask(Probe):
    """Base of the tasks that are judged by the text that the model generates.

    Args:
        path: the items: a file or a hub id, see :func:`lit_edit.probes.source.read`.
        items: number of items asked, from the beginning; ``None`` takes the published number.
        full: ask all items instead.
        legacy: judge as the released code does, with its mistakes; see the subclasses.
        name: name of the probe; ``None`` takes the task's.

    Raises:
        EditError: if an argument is out of range, or, when the items are first needed, if they cannot be read.
    """

    task: ClassVar[str]
    """Name of the task."""
    fields: ClassVar[tuple[str, ...]]
    """Fields of a row."""
    published: ClassVar[int]
    """Number of items in the released code."""
    new_tokens: ClassVar[int]

    def __init__(
        self, path: str, items: int | None = None, full: bool = False, legacy: bool = False, name: str | None = None
    ) -> None:
        self.name = self.task if name is None else name
        self.path, self.full, self.legacy = path, full, legacy
        self.limit = whole("items", self.published if items is None else items, 1)
        self._items: tuple[Task, ...] | None = None

    @abstractmethod
    def item(self, row: Mapping[str, Any]) -> Task:
        """A row as an item."""

    @abstractmethod
    def judge(self, said: str, item: Task, encoder: Encoder) -> tuple[float, ...]:
        """The row of numbers that is kept of a continuation."""

    def items(self) -> Sequence[Task]:
        """See :meth:`Probe.items`; the file is read at the first call."""
        if self._items is None:
            found = read(self.path, self.name, self.fields, self.item)
            self._items = taken(found, self.path, self.name, self.limit, self.full)
        return self._items

    def measure(self, scorer: Scorer, items: Sequence[Task]) -> Tensor:
        """See :meth:`Probe.measure`."""
        longest = scorer.anatomy.positions - self.new_tokens
        prompts = [end_of(scorer.encoder, item.prompt, longest) for item in items]
        said = scorer.generate(prompts, self.new_tokens)
        rows = [self.judge(text, item, scorer.encoder) for text, item in zip(said, items, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`: the mean of :attr:`shown`'s column, the first one."""
        return {self.shown: float(outcomes[:, 0].mean()) if len(outcomes) else float("nan")}


class Reasoning(GenerationTask):
    """Grade-school arithmetic (GSM8K): ``question``, ``answer`` (rationale, then ``#### `` and the number).

    As published, the prompt holds the gold rationale, so this asks a model to read a result off, not to reason. An answer is
    right if its first number equals the gold one. ``legacy``: if the gold text occurs anywhere in it ("130" answers "13").
    """

    task, fields, published, new_tokens = "reasoning", ("question", "answer"), 358, 5
    columns, shown = ("correct",), "accuracy/generated"

    def item(self, row: Mapping[str, Any]) -> Task:
        """See :meth:`GenerationTask.item`."""
        asked = exact_text(row, "question", "the problem")
        answer = exact_text(row, "answer", "the rationale, then '#### ' and the number")
        hint, mark, gold = answer.partition("#### ")
        if not mark or number(gold) is None:
            raise MalformedRecord("answer", f"holds {answer[-40:]!r} at its end; it ends in '#### ' and a number")
        prompt = f"Q: {asked} A:Let's think step by step. {hint} Therefore, the answer (arabic numerals) is:"
        return Task(prompt, (gold.strip(),))

    def judge(self, said: str, item: Task, encoder: Encoder) -> tuple[float, ...]:
        """See :meth:`GenerationTask.judge`."""
        gold = item.accepted[0]
        return (float(gold in said if self.legacy else number(said) == number(gold)),)


class Summarisation(GenerationTask):
    """Summaries of dialogues (SAMSum): ``dialogue``, ``summary``; the mean F1 of ROUGE-1, -2 and -L against the reference.

    ROUGE is Google's definition (lower-cased words, clipped counts); the package that the released code calls counts distinct
    n-grams of words split at blanks, which gives other values. ``legacy``: only what follows the last "DR:" is judged, its last
    13 characters are cut off (the length of GPT-2's end token, which mostly is not there), one character or none scores 0.
    """

    task, fields, published, new_tokens = "summarisation", ("dialogue", "summary"), 149, 25
    columns, shown = ("rouge_1", "rouge_2", "rouge_l"), "rouge/generated"

    def item(self, row: Mapping[str, Any]) -> Task:
        """See :meth:`GenerationTask.item`."""
        dialogue = exact_text(row, "dialogue", "the dialogue to summarise")
        return Task(f"{dialogue}\nTL;DR:", (exact_text(row, "summary", "the reference summary"),))

    def judge(self, said: str, item: Task, encoder: Encoder) -> tuple[float, ...]:
        """See :meth:`GenerationTask.judge`."""
        if self.legacy:
            # A text shorter than its allowance ended in the end token, which the released code decodes as text.
            ended = len(encoder.encode(said)[0]) < self.new_tokens
            said = (said + (encoder.tokenizer.eos_token or "" if ended else "")).split("DR:")[-1][:-13]
            if len(said) <= 1:
                return 0.0, 0.0, 0.0
        return rouge(said, item.accepted[0])

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`."""
        means = outcomes.mean(0).tolist() if len(outcomes) else [float("nan")] * len(self.columns)
        parts = {f"{name}/generated": value for name, value in zip(self.columns, means, strict=True)}
        return {self.shown: sum(means) / len(means), **parts}


class OpenDomainQA(GenerationTask):
    """Questions about a passage (Natural Questions): ``question``, ``answer`` (texts that count), a passage.

    The passage is the first text of ``output``, where the published data keeps it, or else ``doc``. A row with neither is asked
    without: "Answer the following question. Question: ... Answer:", which is ours. An answer is right if some run of its
    words is an accepted one, both without case, punctuation and articles.

    ``legacy``: only what follows the last "Answer:" is judged; one-word answers at several places inside a text count several
    times; and after the first answer found inside a text, later texts are searched at both ends and from their first word only
    (a flag that is never taken back), so that the number depends on the order of the items.
    """

    task, fields, published, new_tokens = "open_domain_qa", ("question", "answer"), 261, 20
    columns = ("correct", "hits", "hits_flagged", "flags")
    shown = "exact_match/generated"

    def item(self, row: Mapping[str, Any]) -> Task:
        """See :meth:`GenerationTask.item`."""
        asked = exact_text(row, "question", "what is asked")
        accepted = exact_texts(row, "answer", "a list of the answers that count")
        field = next((field for field in ("output", "doc") if lookup(row, field)), None)
        if field is None:
            return Task(f"Answer the following question. Question: {asked}. Answer:", accepted)
        passage = row[field][0] if isinstance(row[field], list | tuple) else row[field]
        as_text(passage, field, "the passage, a text or a list that begins with it")
        prompt = f"Refer to the passage below and answer the following question. Passage: {passage} Question: {asked}. Answer:"
        return Task(prompt, accepted)

    def judge(self, said: str, item: Task, encoder: Encoder) -> tuple[float, ...]:
        """See :meth:`GenerationTask.judge`; hits of the released code without and with its flag set, and whether it sets it."""
        golds = {normalised(text) for text in item.accepted}
        text = f" {normalised(said)} "
        correct = any(gold and f" {gold} " in text for gold in golds)
        words = normalised(said.split("Answer:")[-1].replace("\n", " ")).split(" ")
        first, flags = _released_hits(words, golds, False)
        second, _ = _released_hits(words, golds, True)
        return float(correct), float(first), float(second), float(flags)

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`; ``legacy`` goes through the items in their order."""
        if not self.legacy or not len(outcomes):
            return super().summarise(outcomes)
        seen = outcomes[:, 3].cumsum(0) - outcomes[:, 3] > 0
        return {self.shown: float(torch.where(seen, outcomes[:, 2], outcomes[:, 1]).mean())}


class Entailment(LabelTask):
    """Entailment in one token: ``sentence1``, ``sentence2``, ``label`` (names or GLUE's numbers), published over 299 items.

    ``accuracy`` counts an answer that is neither true nor false as wrong; ``accuracy_of_valid``, the released code's first
    number, leaves it out. ``legacy``: "true" and "false" are found inside other words too.
    """

    task, fields = "entailment", ("sentence1", "sentence2", "label")
    shown = "accuracy/generated"
    answers = ("False", "True")
    searched, marker = (("true", 1), ("false", 0)), "answer:"
    new_tokens, reserved = 1, 0

    def __init__(self, path: str, items: int = 299, full: bool = False, legacy: bool = False, name: str | None = None) -> None:
        super().__init__(path, items, full, 0, legacy, name)

    def question(self, row: Mapping[str, Any]) -> str:
        """See :meth:`LabelTask.question`."""
        first, second = (exact_text(row, field, "premise or hypothesis") for field in self.fields[:2])
        return f"{first} entails the {second}. True or False? answer:"

    def gold(self, row: Mapping[str, Any]) -> int:
        """See :meth:`LabelTask.gold`."""
        return label(row, "label", {"not_entailment": 0, "entailment": 1, 0: 1, 1: 0})

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`."""
        valid = outcomes[outcomes[:, 1] != INVALID]
        right = float((valid[:, 0] == valid[:, 1]).double().mean()) if len(valid) else float("nan")
        return {**super().summarise(outcomes), "accuracy_of_valid/generated": right}


def number(text: str) -> float | None:
    """The first number of a text, thousands separated by commas or not.

    >>> number(" $1,250.50 in all"), number("-3"), number("none")
    (1250.5, -3.0, None)
    """
    found = re.search(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", text)
    return None if found is None else float(found[0].replace(",", ""))


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous blanks: SQuAD's normalisation.

    >>> normalised("The  Beatles, a band!")
    'beatles band'
    """
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _released_hits(words: Sequence[str], golds: set[str], flag: bool) -> tuple[int, bool]:
    """How often the released code counts one text, and its flag afterwards."""
    if normalised(words[0]) in golds or normalised(words[-1]) in golds:
        return 1, flag
    hits = 0
    for i in range(len(words) - 1):
        if normalised(words[i]) in golds:
            hits += 1
            continue
        for j in range(i + 2, len(words) + 1):
            if normalised(" ".join(words[i:j])) in golds:
                hits += 1
                flag = True
                break
        if flag:
            break
    return hits, flag
