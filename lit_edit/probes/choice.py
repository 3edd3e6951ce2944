"""Questions with a few possible answers, scored in two ways in one pass: by what is said, and by which answer is likeliest.

Legend: N = items, K = classes.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.probes.agreement import INVALID, label_numbers
from lit_edit.probes.base import Probe
from lit_edit.probes.source import read, taken, whole
from lit_edit.prompts import Encoder
from lit_edit.scoring import Scorer


@dataclass(frozen=True)
class Question:
    """One item of a label task."""

    prompt: str
    """What is asked, without examples in front."""
    shot: str
    """The question as an example, with its answer."""
    label: int
    """The right class."""


class LabelTask(Probe):
    """Base of the label tasks: prompts, answers and fields are a subclass's, everything else is here.

    *Generated*: the model continues the prompt greedily by a few tokens and the first answer it names is its prediction; a
    continuation without one is invalid, which counts as a class that is never right. *Likelihood*: the prediction is the
    answer with the smallest mean token NLL after the prompt and one blank.

    Args:
        path: the items: a file or a hub id, see :func:`lit_edit.probes.source.read`. The first ten are kept for examples
            and never asked, so that runs with and without examples ask the same.
        items: number of items asked (the published 100; of the first 100 accuracies have a standard error of 4 to 5 points).
        full: ask all items instead.
        shots: examples in front of each question, from the reserved ten; those that do not fit the model are left out from
            the first such one on.
        legacy: parse answers and read labels as the released code does, with its mistakes; see the subclasses.
        name: name of the probe; ``None`` takes the task's.

    Raises:
        EditError: if an argument is out of range, or, when the items are first needed, if they cannot be read.
    """

    columns = ("label", "generated", "likelihood")
    shown = "f1/generated"
    task: ClassVar[str]
    """Name of the task."""
    fields: ClassVar[tuple[str, ...]]
    """Fields of a row."""
    answers: ClassVar[tuple[str, ...]]
    """The answer of every class, as it is scored by likelihood and named in examples."""
    searched: ClassVar[tuple[tuple[str, int], ...]]
    """What the released code looks for, in its order, in the lower-cased continuation."""
    marker: ClassVar[str | None] = None
    """The released code reads what follows the last of these, should the model go on with another question."""
    new_tokens: ClassVar[int] = 5
    reserved: ClassVar[int] = 10

    def __init__(
        self, path: str, items: int = 100, full: bool = False, shots: int = 0, legacy: bool = False, name: str | None = None
    ) -> None:
        self.name = self.task if name is None else name
        self.path, self.full, self.legacy = path, full, legacy
        self.limit = whole("items", items, 1)
        self.shots = whole("shots", shots, 0, self.reserved)
        self._items: tuple[Question, ...] | None = None
        self._examples: tuple[str, ...] = ()

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> str:
        """The published prompt of a row, character by character."""

    @abstractmethod
    def gold(self, row: Mapping[str, Any]) -> int:
        """The right class of a row."""

    def shot(self, row: Mapping[str, Any]) -> str:
        """A row as an example."""
        return f"{self.question(row).rstrip(' ')} {self.answers[self.gold(row)]}\n"

    def items(self) -> Sequence[Question]:
        """See :meth:`Probe.items`; the file is read at the first call."""
        if self._items is None:
            found = read(
                self.path,
                self.name,
                self.fields,
                lambda row: Question(self.question(row), self.shot(row), self.gold(row)),
            )
            self._items = taken(found, self.path, self.name, self.limit, self.full, self.reserved)
            self._examples = tuple(question.shot for question in found[: self.shots])
        return self._items

    def prompt(self, encoder: Encoder, question: str, longest: int) -> str:
        """The question behind as many examples as fit into ``longest`` tokens."""
        room = longest - len(encoder.encode(question)[0])
        front = ""
        for example in self._examples:
            room -= len(encoder.encode(example)[0])
            if room < 0:
                break
            front += example
        return end_of(encoder, front + question, longest)

    def measure(self, scorer: Scorer, items: Sequence[Question]) -> Tensor:
        """See :meth:`Probe.measure`; a class is its index in :attr:`answers`, -1 is no answer."""
        self.items()  # the examples stand in the same file
        encoder = scorer.encoder
        answer = max(len(encoder.encode(f" {text}")[0]) for text in self.answers)
        # One to spare: a blank may become a token of its own between prompt and answer.
        longest = scorer.anatomy.positions - max(self.new_tokens, answer) - 1
        prompts = [self.prompt(encoder, item.prompt, longest) for item in items]
        said = scorer.generate(prompts, self.new_tokens)
        scores = scorer.answers([(prompt, text) for prompt in prompts for text in self.answers])
        generated = [self.parsed(text) for text in said]
        likelihood = self.likeliest(scores.nll.view(len(items), len(self.answers)))
        label = [item.label for item in items]
        return torch.tensor([label, generated, likelihood], dtype=torch.float64).T.contiguous()

    def parsed(self, said: str) -> int:
        """The class that a continuation names, -1 for none.

        By default the answer that stands first as a word of its own, in whatever case. With ``legacy`` the first of
        :attr:`searched` that occurs anywhere, inside other words too ("not" is a "no").
        """
        if self.legacy:
            text = (said.split(self.marker)[-1] if self.marker else said).lower()
            return next((index for word, index in self.searched if word in text), INVALID)
        found = re.search(rf"(?<!\w)({'|'.join(self.answers)})(?!\w)", said, re.IGNORECASE)
        return INVALID if found is None else [text.lower() for text in self.answers].index(found[1].lower())

    def likeliest(self, nll_NK: Tensor) -> list[int]:
        """The class of the smallest NLL, the lowest of equals; -1 where a model gives no numbers any more."""
        known = nll_NK.isfinite().all(-1)
        return torch.where(known, nll_NK.argmin(-1), INVALID).tolist()

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`."""
        found = {}
        for column, decoding in enumerate(self.columns[1:], start=1):
            numbers = label_numbers(outcomes[:, 0], outcomes[:, column], len(self.answers))
            if decoding == "likelihood":
                del numbers["invalid"]  # some answer is always the likeliest
            found.update({f"{metric}/{decoding}": value for metric, value in numbers.items()})
        return found


def end_of(encoder: Encoder, text: str, tokens: int) -> str:
    """The end of a text that is too long for a model: what stands last, the question, is what the answer follows.

    Raises:
        EditError: if there is no room for a single token.
    """
    if tokens < 1:
        raise EditError("the model takes too few tokens for this probe: nothing of a prompt fits in front of an answer")
    ids, spans = encoder.encode(text)
    while len(ids) > tokens and text:
        first = next((i for i, (start, end) in enumerate(spans) if end > start), 0)
        at = min(first + len(ids) - tokens, len(ids) - 1)
        text = text[max(spans[at][0], 1) :]
        ids, spans = encoder.encode(text)
    return text
