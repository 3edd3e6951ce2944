"""From rows to requests, with accounts that add up: every row read is either usable or set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lit_edit.data.counterfact import CounterFact
from lit_edit.data.easyedit import EasyEdit
from lit_edit.data.jsonlines import JsonLines
from lit_edit.data.mquake import MQuAKE
from lit_edit.data.qaedit import QAEdit
from lit_edit.data.reader import Reader
from lit_edit.data.source import Row, where
from lit_edit.data.zsre import ZsRE
from lit_edit.errors import EditError, MalformedRecord, cut
from lit_edit.request import EditRequest, SetAside

KNOWN: tuple[type[Reader], ...] = (CounterFact, MQuAKE, ZsRE, EasyEdit, QAEdit, JsonLines)
"""Schemas that are recognised without being named, the most particular first."""


@dataclass(frozen=True)
class Ingested:
    """What became of the rows of one edit set."""

    records: tuple[tuple[EditRequest, ...], ...]
    """The usable rows, in file order, each with its edits: one in most schemas."""
    set_aside: tuple[SetAside, ...]
    """The others, in file order."""

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """The edits of all usable rows, in file order."""
        return tuple(chain.from_iterable(self.records))

    @property
    def rows_read(self) -> int:
        """Rows that were looked at; reading stops once a limit is reached."""
        return len(self.records) + len(self.set_aside)


def ingest(
    rows: Iterable[Row], path: str, reader: Reader | None = None, limit: int | None = None, strict: bool = False
) -> Ingested:
    """Read rows until they end or they have given ``limit`` edits.

    Args:
        rows: numbered rows, as :func:`lit_edit.data.source.rows` yields them.
        path: the edit set, for messages.
        reader: the schema; ``None`` takes the first of :data:`KNOWN` that recognises a row.
        limit: number of edits to stop at, even between the edits of one row; rows that are set aside do not count.
        strict: stop at the first bad row instead of setting it aside.

    Raises:
        EditError: if no schema recognises any row, no row is usable, or, when ``strict``, a row is bad.
    """
    records: list[tuple[EditRequest, ...]] = []
    set_aside: list[SetAside] = []
    left = limit
    rows = iter(rows)
    if reader is None:
        reader, rows = recognise(rows, path)
    for number, row in rows:
        outcome = row if isinstance(row, SetAside) else _read(reader, row, path, number)
        if isinstance(outcome, tuple):
            records.append(outcome[:left])
            if left is not None:
                left -= len(records[-1])
                if left == 0:
                    break
        elif strict:
            raise EditError(f"{sentence(outcome)} (Without strict, such rows are set aside and the stream goes on.)")
        else:
            set_aside.append(outcome)
    if not records:
        raise EditError(_nothing_left(path, set_aside))
    return Ingested(tuple(records), tuple(set_aside))


def recognise(rows: Iterator[Row], path: str) -> tuple[Reader, Iterator[Row]]:
    """Find the schema by the first row that any of :data:`KNOWN` recognises.

    Rows before it are not lost: they come back in front of the rest, to be set aside with the reader's own reasons.

    Raises:
        EditError: if no row is recognised; it lists the schemas and the fields of the first row.
    """
    seen: list[Row] = []
    fields: list[str] = []
    for number, row in rows:
        seen.append((number, row))
        if isinstance(row, SetAside):
            continue
        fields = fields or [str(name) for name in row]
        for known in KNOWN:
            if known.recognises(row):
                return known(), chain(seen, rows)
    bad = [row for _, row in seen if isinstance(row, SetAside)]
    if seen and len(bad) == len(seen):
        raise EditError(_nothing_left(path, bad))
    schemas = "; ".join(known.schema for known in KNOWN)
    raise EditError(
        f"{path} has rows of no known schema: the first has the fields {cut(', '.join(fields), 300) or '(none)'}; known are "
        f"{schemas}. Rename the fields, or name a reader class of your own."
    )


def sentence(row: SetAside) -> str:
    """What is wrong with a row, for people."""
    subject = "the row" if row.field == "*" else f"field '{row.field}'"
    return f"{row.source}: {subject} {row.reason}."


def _nothing_left(path: str, set_aside: list[SetAside]) -> str:
    """The sentence for an edit set that was set aside as a whole."""
    first = f"; the first of them: {sentence(set_aside[0])}" if set_aside else "."
    return f"{path} has no usable row, all {len(set_aside)} were set aside{first}"


def _read(reader: Reader, row: dict[str, Any], path: str, number: int) -> tuple[EditRequest, ...] | SetAside:
    source = where(path, number)
    try:
        found = tuple(reader.requests(row, source, number))
    except MalformedRecord as error:
        return SetAside(source, error.field, error.reason, row)
    return found or SetAside(source, "*", "holds no edit; a row is at least one fact to write", row)
