"""One fact to write into a model, and a batch of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lit_edit.errors import MalformedRecord


@dataclass(frozen=True)
class EditRequest:
    """One fact: after the edit, ``prompt`` with its subject should be answered by ``target_new``.

    A fact without a subject (``subject=""`` and no ``{}`` in the prompt) can be written by editors that work on gradients;
    those that read keys at the subject set it aside.

    Raises:
        MalformedRecord: if the prompt does not hold exactly one ``{}`` for its subject, or subject or target is empty.
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

    def __post_init__(self) -> None:
        # Answers follow a prompt after exactly one blank, and a subject ends with its own last character.
        for name in ("subject", "target_new"):
            object.__setattr__(self, name, getattr(self, name).strip())
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        if not self.prompt:
            raise MalformedRecord("prompt", "is empty; it is the text that the answer follows")
        if self.subject and self.prompt.count("{}") != 1:
            raise MalformedRecord("prompt", f"needs exactly one '{{}}' for the subject, found {self.prompt!r}")
        if not self.subject and "{}" in self.prompt:
            raise MalformedRecord("subject", "is empty; it names the entity that the fact is about")
        if not self.target_new:
            raise MalformedRecord("target_new", "is empty; it is the answer to write")

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
