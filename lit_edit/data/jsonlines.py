"""The plain schema for one's own facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.questions import canonical, triples
from lit_edit.data.reader import Reader, as_text, identifier, lookup, optional_text, template, text, texts
from lit_edit.errors import MalformedRecord, brief
from lit_edit.request import EditRequest


class JsonLines(Reader):
    """Plain records ``{"prompt": ..., "subject": ..., "target": ...}``, one to a line.

    The prompt marks the subject with ``{}`` or simply contains it; in the latter case its last occurrence is the place
    of the edit. A row without a ``subject`` (absent or null) has a complete text as its prompt: a fact for editors that
    need no subject, which the others set aside. Optional fields: ``target_true``, ``paraphrases`` (texts),
    ``neighbourhood`` (pairs of a prompt and the answer that must survive), ``case_id``, ``relation``, ``portability`` (what
    follows from the edit: ``[kind, prompt, [answer, ...]]``, the canonical answer first), ``locality`` (what must stay as it
    was: ``[kind, prompt, answer]``) and ``generation_prompts`` (texts to continue). A kind is any name, e.g. ``"multi-hop"``;
    metrics spell it in snake case. In place of a triple there may be an object with ``kind``, ``prompt`` and ``answers``.
    """

    schema: ClassVar[str] = "plain (prompt, subject, target)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with at least two of the three names: a missing one is the row's mistake, not another schema."""
        return len({"prompt", "subject", "target"} & set(row)) >= 2

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row; see :meth:`Reader.request`."""
        prompt = text(row, "prompt", "the statement to complete, with the subject or '{}' in it")
        subject = ""
        # A prompt that marks a subject's place needs one: its absence is a mistake, not another kind of fact.
        if lookup(row, "subject") is not None or "{}" in prompt:
            subject = text(row, "subject", "the entity that the fact is about")
            prompt = template(prompt, subject)
        return EditRequest(
            prompt=prompt,
            subject=subject,
            target_new=text(row, "target", "the answer to write"),
            target_true=optional_text(row, "target_true", "the answer that the unedited model gives"),
            paraphrases=texts(row, "paraphrases", "the same question in other words"),
            neighbourhood=pairs(row, "neighbourhood"),
            case_id=identifier(row, index),
            relation=optional_text(row, "relation", "the relation's identifier"),
            source=source,
            portability=triples(row, "portability"),
            locality=canonical(triples(row, "locality")),
            generation_prompts=texts(row, "generation_prompts", "a prompt to continue freely"),
        )


def pairs(row: Mapping[str, Any], path: str) -> tuple[tuple[str, str], ...]:
    """A list of ``[prompt, answer]``; absent or null is the empty tuple.

    Raises:
        MalformedRecord: if it is anything else; the item is named ``path[0]``.
    """
    value = lookup(row, path)
    if value in (None, ""):
        return ()
    if not isinstance(value, (list, tuple)):
        raise MalformedRecord(path, f"holds {brief(value)}; it is a list of pairs [prompt, answer]")
    for i, item in enumerate(value):
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise MalformedRecord(f"{path}[{i}]", f"holds {brief(item)}; it is a pair [prompt, answer]")
    return tuple(
        (
            as_text(prompt, f"{path}[{i}][0]", "a prompt about something else"),
            as_text(answer, f"{path}[{i}][1]", "the answer that must survive"),
        )
        for i, (prompt, answer) in enumerate(value)
    )
