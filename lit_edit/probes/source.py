"""Where probes read their items: a local file, a folder, or a data set on the hub.

A probe's items are fixed for a run, so a row that cannot be used is an error that names it; it is never left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lit_edit.data.reader import as_text, kind, lookup
from lit_edit.data.source import SUFFIXES, Row, rows, where
from lit_edit.data.source import _loaded as loaded
from lit_edit.errors import EditError, MalformedRecord, brief, cut
from lit_edit.request import SetAside
from lit_edit.runs.paths import named

T = TypeVar("T")

_HUB_SUBSET = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)/(?P<subset>[\w.-]+)(:(?P<split>[\w.-]+))?")


def read(path: str, probe: str, fields: Sequence[str], make: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Every row of a file as an item, in file order.

    Args:
        path: ``.json``, ``.jsonl``, ``.csv`` (also ``.gz``) or ``.parquet``, a folder of ``datasets``, or a hub id:
            ``owner/name``, ``owner/name/subset``, either with ``:split`` behind.
        probe: name of the probe, for messages.
        fields: fields that the probe reads.
        make: makes an item of a row; it raises ``MalformedRecord``, naming the field, where it cannot.

    Raises:
        EditError: if the file cannot be read, is empty or of another schema, or a row cannot be used.
    """
    schema = f"the probe {probe} reads records with the fields {', '.join(fields)}"
    found: list[T] = []
    for number, row in _rows(path, schema):
        if isinstance(row, SetAside):
            raise EditError(f"{row.source} {row.reason}; {schema}.")
        if not found and not set(fields) & set(row):
            raise EditError(f"{where(path, number)} has the fields {cut(', '.join(map(str, row)), 300) or 'none'}; {schema}.")
        try:
            found.append(make(row))
        except MalformedRecord as error:
            raise EditError(f"{where(path, number)}, field '{error.field}' {error.reason}.") from None
    return found


def _rows(path: str, schema: str) -> Iterable[Row]:
    file = named(path, "a probe")
    subset = (
        None if file.exists() or {file.suffix, file.with_suffix("").suffix} & set(SUFFIXES) else _HUB_SUBSET.fullmatch(path)
    )
    try:
        if subset:
            yield from loaded(path, subset["name"], {"name": subset["subset"]}, subset["split"])
        else:
            yield from rows(path)
    except EditError as error:
        # The reader of edit sets says what it found, then what an edit set would be like.
        what, _, advice = str(error).rpartition("; ")
        raise EditError(f"{what}; {schema}." if "edit set" in advice else str(error)) from error


def exact_text(row: Mapping[str, Any], field: str, meaning: str) -> str:
    """The text of a field, blanks at its ends included: published prompts keep them.

    Raises:
        MalformedRecord: if it is missing, no text, or empty.
    """
    value = lookup(row, field)
    if value is None:
        raise MalformedRecord(field, f"is missing; it is {meaning}")
    as_text(value, field, meaning)
    return str(value)


def exact_texts(row: Mapping[str, Any], field: str, meaning: str, count: int | None = None) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        MalformedRecord: if it is missing, no list, empty, not of the given length, or holds anything but texts.
    """
    value = lookup(row, field)
    if value is None:
        raise MalformedRecord(field, f"is missing; it is {meaning}")
    if not isinstance(value, list | tuple) or not value or (count is not None and len(value) != count):
        found = kind(value) + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
        raise MalformedRecord(field, f"holds {found}; it is {meaning}")
    for i, part in enumerate(value):
        as_text(part, f"{field}[{i}]", f"one of {meaning}")
    return tuple(value)


def label(row: Mapping[str, Any], field: str, names: Mapping[str | int, int]) -> int:
    """A label as a class.

    Args:
        row: the record.
        field: where it stands; a number may be written as text (CSV).
        names: class of every label.

    Raises:
        MalformedRecord: if the label is missing or none of these (hidden test labels are -1).

    >>> label({"label": "1"}, "label", {0: 1, 1: 0})
    0
    """
    value = lookup(row, field)
    wanted = f"a label is {', '.join(map(repr, names))}"
    if value is None:
        raise MalformedRecord(field, f"is missing; {wanted}")
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value.strip()):
        value = int(value)
    # In Python True equals 1, in a file it says something else.
    if isinstance(value, bool) or not isinstance(value, str | int) or value not in names:
        raise MalformedRecord(field, f"holds {brief(value)}; {wanted}")
    return names[value]


def taken(items: Sequence[T], path: str, probe: str, limit: int, full: bool, reserved: int = 0) -> tuple[T, ...]:
    """The items that are asked: behind the reserved ones, the first ``limit`` of them or all.

    Raises:
        EditError: if none is left.
    """
    if len(items) <= reserved:
        kept = f"; the first {reserved} are kept for examples and the rest is asked" if reserved else ""
        raise EditError(f"{path} holds {len(items)} records, too few for the probe {probe}{kept}.")
    return tuple(items[reserved:] if full else items[reserved : reserved + limit])


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """Check a whole number given as an argument.

    Raises:
        EditError: if it is out of range.
    """
    if value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise EditError(f"{name} is {value}; it is at least {least}{upper}.")
    return value
