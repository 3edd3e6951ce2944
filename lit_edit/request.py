"""One fact to write into a model, and a batch of them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from lit_edit.errors import MalformedRecord, brief


@dataclass(frozen=True)
class EditRequest:
    """One fact: after the edit, ``prompt`` with its subject should be answered by ``target_new``.

    A fact without a subject (``subject=""`` and no ``{}`` in the prompt) can be written by editors that work on gradients;
    those that read keys at the subject set it aside.

    What the edit is scored on besides its own prompt is optional: a fact without paraphrases, neighbours or any of the last
    three fields is scored on what it has.

    Raises:
        MalformedRecord: if the prompt does not hold exactly one ``{}`` for its subject, subject or target is empty, or an item
            of ``portability``, ``locality`` or ``generation_prompts`` has another form than theirs, an empty text or no answer.
    """

    prompt: str
    """Text with exactly one ``{}`` where the subject stands, e.g. ``"{} was born in"``."""
    subject: str
    """The entity whose stored value is rewritten, without surrounding blanks; empty if the prompt names none."""
    target_new: str
    """The answer to write, without a leading blank."""
    target_true: str | None = None
    """The answer the unedited model is supposed to give; ``None`` if the data set does not say."""
    paraphrases: tuple[str, ...] = ()
    """Complete prompts that ask for the same fact in other words; expected answer: ``target_new``."""
    neighbourhood: tuple[tuple[str, str], ...] = ()
    """Complete prompts about other things with the answer that must survive the edit."""
    case_id: str = ""
    """Identifier within the data set."""
    relation: str | None = None
    """Relation identifier (e.g. a Wikidata property), if known."""
    source: str = ""
    """Where the record was read, e.g. ``"facts.json, row 12"``."""
    portability: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """What follows from the edit: ``(kind, complete prompt, accepted answers)``, the first answer being the canonical one.

    The kind is in snake case, since it becomes part of a metric's name: ``"reasoning"``, ``"subject_aliasing"``,
    ``"logical_generalization"``, ``"multi_hop"``.
    """
    locality: tuple[tuple[str, str, str], ...] = ()
    """What the edit must leave alone: ``(kind, complete prompt, canonical answer)``, to be compared with the answers that the
    model itself gave before the edit. Kinds as in ``portability``, e.g. ``"relation_specificity"``."""
    generation_prompts: tuple[str, ...] = ()
    """Complete prompts to continue freely, for fluency; the same one may stand here several times."""

    def __post_init__(self) -> None:
        # Answers follow a prompt after exactly one blank, and a subject ends with its own last character.
        for name in ("subject", "target_new"):
            object.__setattr__(self, name, getattr(self, name).strip())
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        if not self.prompt:
            raise MalformedRecord("prompt", "is empty; it is the text that the answer follows")
        if self.subject and self.prompt.count("{}") != 1:
            raise MalformedRecord("prompt", f"needs exactly one '{{}}' for the subject, found {brief(self.prompt, 200)}")
        if not self.subject and "{}" in self.prompt:
            raise MalformedRecord("subject", "is empty; it names the entity that the fact is about")
        if not self.target_new:
            raise MalformedRecord("target_new", "is empty; it is the answer to write")
        for name, checked in (("portability", _consequence), ("locality", _unaffected), ("generation_prompts", _prompt)):
            items = getattr(self, name)
            if not isinstance(items, (list, tuple)):
                raise MalformedRecord(name, f"holds {brief(items)}; it is a tuple of items")
            object.__setattr__(self, name, tuple(checked(item, f"{name}[{i}]") for i, item in enumerate(items)))

    @property
    def text(self) -> str:
        """The edit prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def name(self) -> str:
        """How messages refer to this request."""
        return f"case {self.case_id}" if self.case_id else repr(self.text)


@dataclass(frozen=True)
class EditBatch:
    """The requests of one optimiser step, in stream order."""

    requests: tuple[EditRequest, ...]
    start: int
    """Position in the stream of the first request (0-based)."""

    def __len__(self) -> int:
        return len(self.requests)


@dataclass(frozen=True)
class SetAside:
    """A row that was not edited, and why."""

    source: str
    """File (or data set) and row."""
    field: str
    """The field that is wrong, ``"*"`` for the row as a whole."""
    reason: str
    row: Any = dataclasses.field(default=None, repr=False)
    """The row as it was read, where it could be read."""


def _consequence(item: Any, path: str) -> tuple[str, str, tuple[str, ...]]:
    """An item of ``portability``, checked."""
    kind, prompt, answers = _triple(item, path, "(kind, prompt, accepted answers)")
    if not isinstance(answers, (list, tuple)) or not answers:
        raise MalformedRecord(f"{path}[2]", f"holds {brief(answers)}; it is a tuple of at least one accepted answer")
    found = tuple(_text(answer, f"{path}[2][{i}]", "an accepted answer").strip() for i, answer in enumerate(answers))
    return _kind(kind, f"{path}[0]"), _prompt(prompt, f"{path}[1]"), found


def _unaffected(item: Any, path: str) -> tuple[str, str, str]:
    """An item of ``locality``, checked."""
    kind, prompt, answer = _triple(item, path, "(kind, prompt, answer)")
    return _kind(kind, f"{path}[0]"), _prompt(prompt, f"{path}[1]"), _text(answer, f"{path}[2]", "the answer").strip()


def _triple(item: Any, path: str, form: str) -> tuple[Any, Any, Any]:
    if not isinstance(item, (list, tuple)) or len(item) != 3:
        raise MalformedRecord(path, f"holds {brief(item)}; it is a triple {form}")
    return item[0], item[1], item[2]


def _kind(value: Any, path: str) -> str:
    kind = _text(value, path, "the kind of the item").strip()
    if not re.fullmatch(r"\w+", kind) or kind != kind.lower():
        raise MalformedRecord(path, f"holds {brief(kind)}; a kind is part of a metric's name and in snake case, as 'multi_hop'")
    return kind


def _prompt(value: Any, path: str) -> str:
    """A complete prompt; as with the edit's own, its answer follows after exactly one blank."""
    return _text(value, path, "the text that the answer follows").rstrip()


def _text(value: Any, path: str, meaning: str) -> str:
    if not isinstance(value, str):
        raise MalformedRecord(path, f"holds {brief(value)}, not text; it is {meaning}")
    if not value.strip():
        raise MalformedRecord(path, f"is empty; it is {meaning}")
    return value
