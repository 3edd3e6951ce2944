"""QAEdit, questions with answers that a model got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.reader import Reader, as_text, identifier, literal_template, lookup, optional_text, text, texts
from lit_edit.errors import MalformedRecord
from lit_edit.request import EditRequest


class QAEdit(Reader):
    """QAEdit (Yang et al. 2025, https://arxiv.org/abs/2502.11177): ``prompt, subject, target, rephrase, locality[]``.

    Each item of ``locality`` is an object with ``loc``, the question, and ``loc_ans``, the answer that must survive;
    they become the neighbourhood as they stand, without a question mark being added. ``id`` counts within the
    collection that ``source`` names, so both make the ``case_id``.
    """

    schema: ClassVar[str] = "QAEdit (prompt, subject, target, rephrase, locality)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with the name ``target`` or ``subject`` and the two names that plain JSON lines do not have."""
        names = set(row)
        return {"rephrase", "locality"} <= names and not names.isdisjoint({"target", "subject"})

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row; see :meth:`Reader.request`."""
        subject = text(row, "subject", "the entity that the question is about")
        question = text(row, "prompt", "the question, with the subject in it")
        origin = optional_text(row, "source", "the collection that the question is from")
        number = identifier(row, index, "id")
        return EditRequest(
            prompt=literal_template(question, subject, prompt_field="prompt", subject_field="subject"),
            subject=subject,
            target_new=text(row, "target", "the answer to write"),
            paraphrases=texts(row, "rephrase", "the same question in other words"),
            neighbourhood=_locality(row),
            case_id=f"{origin}-{number}" if origin else number,
            source=source,
        )


def _locality(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Questions about other things, each with its answer."""
    items = lookup(row, "locality") or []
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Mapping) for item in items):
        raise MalformedRecord("locality", "is not a list of objects with 'loc' and 'loc_ans'")
    pairs = [(item.get("loc"), item.get("loc_ans")) for item in items]
    return tuple(
        (
            as_text(question, f"locality[{i}].loc", "a question about something else"),
            as_text(answer, f"locality[{i}].loc_ans", "the answer that must survive"),
        )
        for i, (question, answer) in enumerate(pairs)
    )
