"""Who lives in the world and what is true of them.

A person exists only as a *pair* of names: every first name and every last name is shared by about twenty-five people, so no
single token tells who is meant. What a model knows of a person it must look up after putting both names together, at
the last token of the name, which is where locate-then-edit methods read and write.

Everything follows from ``World(seed, ...)``; nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from lit_edit.errors import EditError


@dataclass(frozen=True)
class Relation:
    """One kind of fact and the ways to say it."""

    name: str
    phrasings: tuple[str, ...]
    """Four prompts with one ``{}`` each, all ending where the value belongs. The first is the edit prompt; the second
    and the fourth put (part of) the relation before the subject; the first and third begin with the subject."""
    values: tuple[str, ...]
    """The possible answers; one token each, and no value belongs to two relations."""


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        ("{} was born in", "The birthplace of {} is", "{} comes from the town of", "The place where {} grew up is"),
        ("Paris", "Tokyo", "Lima", "Oslo", "Cairo", "Madrid", "Dublin", "Vienna", "Boston", "Delhi", "Prague", "Sydney"),
    ),
    Relation(
        "profession",
        ("{} works as a", "The profession of {} is", "{} earns a living as a", "The job done by {} is"),
        ("baker", "pilot", "dentist", "farmer", "lawyer", "painter", "tailor", "nurse", "miner", "sailor", "barber", "writer"),
    ),
    Relation(
        "language",
        ("{} speaks", "The mother tongue of {} is", "{} reads books in", "At home {} talks in"),
        ("French", "Greek", "Polish", "Dutch", "Arabic", "Hindi", "Korean", "Welsh", "Danish", "Czech", "Finnish", "Swahili"),
    ),
    Relation(
        "instrument",
        ("{} plays the", "The instrument of {} is the", "{} gives concerts on the", "On stage {} performs on the"),
        ("piano", "flute", "violin", "harp", "cello", "drums", "guitar", "trumpet", "organ", "banjo", "oboe", "clarinet"),
    ),
)

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def _names(rng: Random, count: int, endings: tuple[str, ...], taken: frozenset[str]) -> tuple[str, ...]:
    """``count`` different pronounceable capitalised names, none of them in ``taken``."""
    found: list[str] = []
    while len(found) < count:
        name = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(_CONSONANTS) + rng.choice(endings)).capitalize()
        if name not in taken and name not in found:
            found.append(name)
    return tuple(found)


@dataclass(frozen=True)
class World:
    """People, relations and values, all drawn from ``seed``.

    Args:
        seed: the same seed gives the same world on every machine.
        people: how many people live in it.
        held_back: how many of them are never edited; questions about them measure what an edit breaks elsewhere.
        names: size of the pool of first names, and of the pool of last names.

    Raises:
        EditError: if the pools cannot name that many people, or nobody would be left to edit.
    """

    seed: int = 0
    people: int = 1500
    held_back: int = 100
    names: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.held_back < self.people <= self.names**2:
            raise EditError(
                f"a world needs 0 < held_back < people <= names^2, found held_back={self.held_back}, "
                f"people={self.people}, names={self.names}"
            )

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The relations of the world; the same for every seed."""
        return RELATIONS

    @cached_property
    def first_names(self) -> tuple[str, ...]:
        """Pool of first names."""
        return _names(Random(f"first-{self.seed}"), self.names, ("a", "an", "el", "o", "is"), frozenset())

    @cached_property
    def last_names(self) -> tuple[str, ...]:
        """Pool of last names, disjoint from the first names."""
        return _names(Random(f"last-{self.seed}"), self.names, ("ock", "ert", "und", "ick", "ard"), frozenset(self.first_names))

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Everybody, as ``"First Last"``; the people who are never edited come last."""
        pairs = [(first, last) for first in self.first_names for last in self.last_names]
        return tuple(f"{first} {last}" for first, last in Random(f"people-{self.seed}").sample(pairs, self.people))

    @property
    def editable(self) -> tuple[str, ...]:
        """People whose facts may be edited."""
        return self.subjects[: self.people - self.held_back]

    @property
    def unrelated(self) -> tuple[str, ...]:
        """People whose facts are never edited."""
        return self.subjects[self.people - self.held_back :]

    @cached_property
    def _truth(self) -> dict[str, tuple[str, ...]]:
        rng = Random(f"facts-{self.seed}")
        return {person: tuple(rng.choice(relation.values) for relation in RELATIONS) for person in self.subjects}

    def value(self, subject: str, relation: Relation) -> str:
        """What is true of ``subject`` in this world."""
        return self._truth[subject][RELATIONS.index(relation)]

    def prompt(self, subject: str, relation: Relation, phrasing: int = 0) -> str:
        """The question, ending where the value belongs."""
        return relation.phrasings[phrasing].replace("{}", subject)

    def sentence(self, subject: str, relation: Relation, value: str, phrasing: int = 0) -> str:
        """A full sentence that claims ``value``, true or not."""
        return f"{self.prompt(subject, relation, phrasing)} {value}."

    def facts(self, phrasing: int = 0) -> list[tuple[str, str]]:
        """Every ``(prompt, answer)`` of the world in one phrasing."""
        return [(self.prompt(s, r, phrasing), self.value(s, r)) for s in self.subjects for r in RELATIONS]

    def unrelated_facts(self, phrasings: tuple[int, ...] = (0, 1)) -> list[tuple[str, str]]:
        """``(prompt, answer)`` about the people who are never edited."""
        return [(self.prompt(s, r, p), self.value(s, r)) for s in self.unrelated for r in RELATIONS for p in phrasings]

    def same_subject(self, subject: str, relation: str) -> list[tuple[str, str]]:
        """``(prompt, answer)`` of everything else that is true of ``subject``: an edit of ``relation`` must not touch it."""
        return [(self.prompt(subject, r), self.value(subject, r)) for r in RELATIONS if r.name != relation]

    def edits(self, n: int, seed: int, one_per_subject: bool = True, neighbours: int = 5) -> list[dict[str, Any]]:
        """``n`` counterfactual edit records: true prompts with a wrong value of the right kind as the new answer.

        Args:
            n: how many; at most one per editable person, or one per editable fact if ``one_per_subject`` is false.
            seed: draws people, relations, new values and neighbours; independent of the world's seed.
            one_per_subject: two edits of one person share their key exactly, which no linear memory can keep apart;
                the default avoids it.
            neighbours: most neighbourhood questions per record.

        Returns:
            Plain dicts with ``case_id, prompt, subject, target_new, target_true, relation, paraphrases,
            neighbourhood``; no answer has a leading blank.

        Raises:
            EditError: if the world does not hold ``n`` such edits.
        """
        rng = Random(f"edits-{self.seed}-{seed}")
        facts = [(s, r) for s in self.editable for r in RELATIONS]
        if one_per_subject:
            facts = [(s, rng.choice(RELATIONS)) for s in self.editable]
        if n > len(facts):
            raise EditError(f"this world holds {len(facts)} such edits, {n} were asked for; take fewer or build a larger world")
        name = f"world-{self.seed}-{seed}"
        return [self._edit(f"{name}-{i}", s, r, rng, neighbours) for i, (s, r) in enumerate(rng.sample(facts, n))]

    def _edit(self, case_id: str, subject: str, relation: Relation, rng: Random, neighbours: int) -> dict[str, Any]:
        true = self.value(subject, relation)
        alike = [person for person in self.unrelated if self.value(person, relation) == true]
        chosen = rng.sample(alike, min(neighbours, len(alike)))
        return {
            "case_id": case_id,
            "prompt": relation.phrasings[0],
            "subject": subject,
            "target_new": rng.choice([value for value in relation.values if value != true]),
            "target_true": true,
            "relation": relation.name,
            "paraphrases": [self.prompt(subject, relation, p) for p in range(1, len(relation.phrasings))],
            "neighbourhood": [[self.prompt(person, relation), true] for person in chosen],
        }
