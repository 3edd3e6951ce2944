"""True facts and the templates that say them, from files.

Two files, in the schema of the collection that CounterFact was made from (ParaRel, Elazar et al. 2021,
https://arxiv.org/abs/2102.01017; CounterFact, Meng et al. 2022, https://arxiv.org/abs/2202.05262):

* facts, JSON lines: ``{"relation_id": "P103", "subject": "Danielle Darrieux", "object": "French",
  "counterfact_case_ids": [0]}``; the last field may be absent;
* templates, one JSON object: ``{"P103": {"counterfact_templates": {"The mother tongue of {} is": 174},
  "pararel_patterns": ["[X] is a native speaker of [Y] ."]}}``; the counts are not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from lit_edit.errors import EditError, brief


@dataclass(frozen=True)
class Template:
    """One way to say a relation: ``before`` + subject + ``between`` + blank + object + ``after``."""

    before: str
    between: str
    after: str = "."

    @property
    def prompt(self) -> str:
        """With ``{}`` for the subject, ending where the object belongs."""
        return f"{self.before}{{}}{self.between}"

    def asked(self, subject: str) -> tuple[str, int]:
        """The prompt about a subject, and the place (in characters) where the subject ends in it."""
        return f"{self.before}{subject}{self.between}", len(self.before) + len(subject)


@dataclass(frozen=True)
class Fact:
    """What is true of a subject."""

    relation: str
    subject: str
    object: str
    edited: bool
    """Whether CounterFact has an edit of it."""


@dataclass(frozen=True)
class Knowledge:
    """Facts, and how to say them.

    Args:
        facts: one object for each relation and subject.
        templates: of each relation, those of CounterFact, which end where the object belongs.
        patterns: of each relation, other wordings, which may go on behind the object.
        held_out: of this share of the pairs of a fact and a template, drawn by their text alone, training sees nothing.
    """

    facts: tuple[Fact, ...]
    templates: dict[str, tuple[Template, ...]]
    patterns: dict[str, tuple[Template, ...]]
    held_out: float = 0.1

    @classmethod
    def read(
        cls, facts: Path, templates: Path, relations: Sequence[str] | None = None, edited: bool = True, held_out: float = 0.1
    ) -> Knowledge:
        """From files.

        Where a relation and a subject have several objects, the one that CounterFact has an edit of counts, else the first:
        a model that is asked for one answer can only give one.

        Args:
            facts: file of facts.
            templates: file of templates.
            relations: identifiers of the relations to learn; ``None`` takes all that CounterFact has templates of.
            edited: learn only facts that CounterFact has an edit of.
            held_out: see the class.

        Raises:
            EditError: if a file cannot be read or used, or nothing is left to learn.
        """
        said, reworded = _templates(templates)
        wanted = sorted(set(said if relations is None else relations))
        if unknown := [relation for relation in wanted if relation not in said]:
            raise EditError(f"{templates} has no template of {brief(unknown)}; it has those of {', '.join(sorted(said))}")
        found: dict[tuple[str, str], Fact] = {}
        for fact in _facts(facts):
            key = fact.relation, fact.subject
            if fact.relation in wanted and (fact.edited or not edited) and not (key in found and found[key].edited):
                found.setdefault(key, fact)
                if fact.edited:
                    found[key] = fact
        if not found:
            raise EditError(f"{facts} has no fact to learn of the relations {', '.join(wanted)}")
        return cls(tuple(found.values()), {r: said[r] for r in wanted}, {r: reworded[r] for r in wanted}, held_out)

    def is_held_out(self, fact: Fact, template: Template) -> bool:
        """Whether training never sees this fact in these words. Other words of the same fact it does see."""
        spread = crc32("\t".join((fact.relation, fact.subject, template.prompt)).encode()) / 2**32
        return spread < self.held_out and len(self.templates[fact.relation]) > 1

    def subjects(self) -> tuple[str, ...]:
        """All subjects, in the order in which they first occur."""
        return tuple(dict.fromkeys(fact.subject for fact in self.facts))

    def objects(self) -> tuple[str, ...]:
        """All objects, in the order in which they first occur."""
        return tuple(dict.fromkeys(fact.object for fact in self.facts))


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EditError(f"{path} is not UTF-8 text (byte {error.start}), so it holds no {what}") from None
    except OSError as error:
        raise EditError(f"the file of {what} {path} cannot be read: {error.strerror}") from None


def _facts(path: Path) -> Iterator[Fact]:
    for number, line in enumerate(_read(path, "facts").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            texts = [row[name] for name in ("relation_id", "subject", "object")]
        except (ValueError, KeyError, TypeError):
            raise EditError(
                f"{path}, line {number} is no JSON object with relation_id, subject and object: {brief(line)}"
            ) from None
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise EditError(
                f"{path}, line {number}: relation_id, subject and object are texts that are not empty, found {brief(row)}"
            )
        yield Fact(texts[0], texts[1].strip(), texts[2].strip(), bool(row.get("counterfact_case_ids")))


def _templates(path: Path) -> tuple[dict[str, tuple[Template, ...]], dict[str, tuple[Template, ...]]]:
    try:
        rows = json.loads(_read(path, "templates"))
        pairs = {
            name: (list(row["counterfact_templates"]), list(row.get("pararel_patterns", ()))) for name, row in rows.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EditError(f"{path} is no JSON object of relations, each with counterfact_templates ({brief(error)})") from None
    said: dict[str, tuple[Template, ...]] = {}
    reworded: dict[str, tuple[Template, ...]] = {}
    for relation, (prompts, patterns) in pairs.items():
        parts = [prompt.split("{}") for prompt in prompts]
        if wrong := [prompt for prompt, part in zip(prompts, parts, strict=True) if len(part) != 2]:
            raise EditError(
                f"{path}: the template {brief(wrong[0])} of {relation} must hold {{}} once, where the subject stands"
            )
        if parts:
            said[relation] = tuple(Template(before, between) for before, between in parts)
            others = (template for pattern in patterns if (template := _pattern(pattern)) is not None)
            reworded[relation] = tuple(other for other in others if other not in said[relation])
    return said, reworded


def _pattern(pattern: str) -> Template | None:
    """A pattern of ParaRel, ``None`` unless it names the subject first and the object as a word of its own."""
    before, found, rest = pattern.partition("[X]")
    between, there, after = rest.partition("[Y]")
    if not (found and there) or "[Y]" in before or "[X]" in rest or not between.endswith(" "):
        return None
    after = after.rstrip(" .,") + "."
    return Template(before, " ".join(between.split(" ")).rstrip(), after)
