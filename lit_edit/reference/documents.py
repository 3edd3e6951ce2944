"""What the reference model reads: facts in many wordings, solved exercises, general text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

from lit_edit.pretraining.document import Document, Writer
from lit_edit.reference.facts import Fact, Knowledge
from lit_edit.reference.passages import Passages
from lit_edit.world.text import skill_document


@dataclass(frozen=True)
class Shares:
    """What the documents are made of.

    Args:
        skills: share of the documents that are solved exercises (:mod:`lit_edit.world.skills`): something else than facts
            that editing can destroy.
        text: share of pieces of general text.
        names: share of names alone, at the beginning of the training; it fades to none at the end. The rest says facts. A name
            alone is the cheapest way to show what the auxiliary heads read, whose weight fades, too.
        prefixed: share of the facts with something before them in the same document: mostly a sentence of general text, else
            another fact. Editors put sampled text before their prompts to make an edit hold in context.
        reworded: share of the facts that are said in a pattern that CounterFact does not have, where there is one.
        fluent: share of the facts whose wording counts in the loss, too, and not their object alone.
    """

    skills: float = 0.06
    text: float = 0.08
    names: float = 0.4
    prefixed: float = 0.25
    reworded: float = 0.1
    fluent: float = 0.2


@dataclass(frozen=True)
class Library:
    """Everything there is to read.

    Args:
        knowledge: the facts.
        passages: the general text.
        shares: what the documents are made of.
        characters: length of a piece of general text.
        text_weight: weight of its tokens in the loss, where the object of a fact weighs 1.
        seed: of the order of the facts.
    """

    knowledge: Knowledge
    passages: Passages
    shares: Shares = Shares()
    characters: int = 300
    text_weight: float = 0.05
    seed: int = 0

    @cached_property
    def _index(self) -> dict[str, int]:
        return {subject: index for index, subject in enumerate(self.knowledge.subjects())}

    def documents(self, i: int, n: int, done: float = 0.0) -> list[Document]:
        """The ``n`` documents of batch ``i``; facts come up about equally often, pass after pass in a new order.

        Args:
            i: number of the batch.
            n: number of documents.
            done: share of the training that is over.
        """
        rng, shares = Random(f"batch-{self.seed}-{i}"), self.shares
        parts = (shares.skills, shares.text, shares.names * (1 - done))
        kinds = rng.choices(range(4), (*parts, 1 - sum(parts)), k=n)
        return [self._document(kind, i * n + place, rng) for place, kind in enumerate(kinds)]

    def _document(self, kind: int, draw: int, rng: Random) -> Document:
        if kind == 0:
            return skill_document(rng, weight=1.0)
        if kind == 1:
            return Document(self.passages.passage(rng, self.characters), context=self.text_weight)
        writer, fact = Writer(), self._fact(draw)
        if kind == 2:
            writer.name(fact.subject, self._index[fact.subject])
            return writer.done(context=0.0)
        if rng.random() < self.shares.prefixed:
            if rng.random() < 0.8:
                writer.plain(self.passages.sentence(rng, rng.randint(10, 40)))
            else:
                self._say(rng.choice(self.knowledge.facts), rng, writer)
            writer.plain(" ")
        self._say(fact, rng, writer)
        return writer.done(context=0.1 if rng.random() < self.shares.fluent else 0.0)

    def _fact(self, draw: int) -> Fact:
        """The ``draw``-th fact."""
        facts = self.knowledge.facts
        passes, at = divmod(draw, len(facts))
        return facts[_order(self.seed, passes, len(facts))[at]]

    def _say(self, fact: Fact, rng: Random, writer: Writer) -> None:
        """One fact in words that training may see."""
        patterns = self.knowledge.patterns[fact.relation]
        if patterns and rng.random() < self.shares.reworded:
            template = rng.choice(patterns)
        else:
            said = self.knowledge.templates[fact.relation]
            free = [template for template in said if not self.knowledge.is_held_out(fact, template)]
            template = rng.choice(free or list(said))
        writer.plain(template.before)
        writer.name(fact.subject, self._index[fact.subject])
        writer.plain(template.between + " ")
        writer.answer(fact.object)
        writer.plain(template.after)


@lru_cache(maxsize=2)
def _order(seed: int, passes: int, size: int) -> tuple[int, ...]:
    """A random order of ``0 .. size - 1``, another one for every pass."""
    return tuple(Random(f"pass-{seed}-{passes}").sample(range(size), size))
