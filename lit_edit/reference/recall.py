"""Which facts a model knows, by relation and by template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lit_edit.metrics.statistics import mean_interval
from lit_edit.reference.facts import Fact, Knowledge, Template
from lit_edit.scoring import Scorer


@dataclass
class Share:
    """Right answers among answers, with a 95 % interval."""

    right: int = 0
    asked: int = 0

    def add(self, right: bool) -> None:
        """Count one answer."""
        self.right += right
        self.asked += 1

    def told(self) -> dict[str, Any]:
        """As plain data."""
        interval = mean_interval(self.right, self.right, self.asked)
        value = self.right / self.asked if self.asked else None
        return {"value": value, "low": interval.low, "high": interval.high, "n": self.asked}

    @classmethod
    def of(cls, answers: Iterable[bool]) -> Share:
        """Of some answers."""
        found = cls()
        for right in answers:
            found.add(right)
        return found


@dataclass
class Recall:
    """Share of facts whose object is the argmax at every one of its tokens (teacher-forced), in CounterFact's templates."""

    seen: Share = field(default_factory=Share)
    """Facts in words in which training may have said them."""
    unseen: Share = field(default_factory=Share)
    """Facts in words in which training never said them; it said them in others."""
    relations: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Of each relation, of each template, both kinds together."""
    guess: dict[str, float] = field(default_factory=dict)
    """Of each relation, the share of its most frequent object: the recall of a model that knows no subject."""
    known: list[tuple[Fact, Template]] = field(default_factory=list)
    """What was answered right, for what needs known facts."""

    def told(self) -> dict[str, Any]:
        """As plain data."""
        relations = {}
        for relation, templates in self.relations.items():
            whole = Share(sum(s.right for s in templates.values()), sum(s.asked for s in templates.values()))
            by_template = {prompt: share.told() for prompt, share in templates.items()}
            relations[relation] = {"recall": whole.told(), "guess": self.guess[relation], "templates": by_template}
        return {"words_seen": self.seen.told(), "words_unseen": self.unseen.told(), "relations": relations}


def measure_recall(scorer: Scorer, knowledge: Knowledge, most: int | None = 200, seed: int = 0) -> Recall:
    """Ask for facts in all of their relation's templates.

    Args:
        scorer: the model.
        knowledge: the facts.
        most: facts of each relation, drawn at random; ``None`` asks for all.
        seed: of the draw.
    """
    found = Recall()
    by_relation: dict[str, list[Fact]] = {relation: [] for relation in knowledge.templates}
    for fact in knowledge.facts:
        by_relation[fact.relation].append(fact)
    for relation, facts in by_relation.items():
        if not facts:
            continue
        found.guess[relation] = Counter(fact.object for fact in facts).most_common(1)[0][1] / len(facts)
        chosen = facts if most is None else Random(f"recall-{seed}-{relation}").sample(facts, min(most, len(facts)))
        templates = knowledge.templates[relation]
        asked = [(fact, template) for template in templates for fact in chosen]
        right = scorer.answers([(template.asked(fact.subject)[0], fact.object) for fact, template in asked]).correct.tolist()
        found.relations[relation] = {template.prompt: Share() for template in templates}
        for (fact, template), correct in zip(asked, right, strict=True):
            found.relations[relation][template.prompt].add(correct)
            (found.unseen if knowledge.is_held_out(fact, template) else found.seen).add(correct)
            if correct:
                found.known.append((fact, template))
    return found
