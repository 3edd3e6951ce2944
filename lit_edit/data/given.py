"""Facts that are given as Python objects."""

from __future__ import annotations

from typing import Any

from lit_edit.data.jsonlines import JsonLines
from lit_edit.data.reader import kind
from lit_edit.data.source import FactSource
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.request import EditRequest


class Facts(FactSource):
    """A list of facts in place of a file of them: ``EditStream(source=Facts([...]))``, or in YAML as ``data.source``.

    >>> facts = Facts([{"prompt": "{} was born in", "subject": "Ada Lovelace", "target": "Paris"}])
    >>> [request.text for request in facts.requests()]
    ['Ada Lovelace was born in']

    Args:
        records: rows of the plain schema (:class:`lit_edit.data.JsonLines`: ``prompt``, ``subject``, ``target`` and optional
            fields) or :class:`~lit_edit.request.EditRequest`, in the order in which they are to be written.

    Raises:
        EditError: naming the first record that cannot be used, its field and what would be right. Nothing is set aside: a list
            that a program has made has no rows that its author does not know of.
    """

    def __init__(self, records: list[dict[str, Any] | EditRequest]) -> None:
        self.facts = tuple(_request(record, number) for number, record in enumerate(records, start=1))

    def __repr__(self) -> str:
        return f"Facts({len(self.facts)})"

    def requests(self) -> tuple[EditRequest, ...]:
        """The facts in the order given."""
        return self.facts


def _request(record: dict[str, Any] | EditRequest, number: int) -> EditRequest:
    if isinstance(record, EditRequest):
        return record
    where = f"fact {number}"
    if not isinstance(record, dict):
        raise EditError(f"{where} is {kind(record)}; a fact is a dict with prompt, subject and target, or an EditRequest")
    try:
        return JsonLines().request(record, where, number)
    except MalformedRecord as error:
        raise EditError(f"{where}: {error}") from None
