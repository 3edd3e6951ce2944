"""Where rows come from: a file, a folder, the Hugging Face hub, or a program that makes them.

:func:`rows` yields every record that can be recovered and a :class:`~lit_edit.request.SetAside` for everything that
cannot, so that a damaged file costs only what is damaged. What makes a whole file useless is an ``EditError``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_edit.data.reader import kind
from lit_edit.errors import EditError, brief, first_line
from lit_edit.request import EditRequest, SetAside
from lit_edit.runs.paths import named

Row = tuple[int, "dict[str, Any] | SetAside"]
"""A row's number, counted from 1, and the row or the reason why it could not be read."""

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
"""Kinds of files that are read; the first three also with ``.gz`` behind."""

_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.-]+))?")
_KEPT = 500  # characters of unreadable text that a SetAside keeps, enough to recognise it in the file


class FactSource(ABC):
    """Facts that are made rather than read, for ``EditStream(source=...)``."""

    @abstractmethod
    def requests(self) -> Iterable[EditRequest]:
        """The facts, the same ones in the same order at every call: a resumed run counts on it."""


def where(path: str, row: int) -> str:
    """How messages and ``EditRequest.source`` name a row.

    >>> where("facts.json", 12)
    'facts.json, row 12'
    """
    return f"{path}, row {row}"


def split_where(source: str) -> tuple[str, int | None]:
    """The inverse of :func:`where`; the row is ``None`` if the text names none."""
    path, mark, row = source.rpartition(", row ")
    return (path, int(row)) if mark and row.isdecimal() else (source, None)


def rows(path: str) -> Iterator[Row]:
    """Read records in file order.

    Rows are numbered from 1: by line in JSON lines, by record elsewhere.

    Args:
        path: a file (``.json``: a list of records, one record, or JSON lines; ``.jsonl``; ``.csv`` with a header;
            ``.parquet``; all but the last also gzipped), a folder with a data set that Hugging Face ``datasets`` can
            load, or a hub id ``owner/name``; the latter two with ``:split`` behind if there are several splits.

    Raises:
        EditError: if nothing can be read: missing, unreadable or empty file, UTF-16, unknown kind of file, folder
            without data, hub id that cannot be loaded.
    """
    file = named(path, "the edit set")
    base, _, split = path.rpartition(":")
    if file.is_dir():
        yield from _folder(path, file, None)
        return
    if base and Path(base).expanduser().is_dir():
        yield from _folder(path, Path(base).expanduser(), split)
        return
    plain = file.with_suffix("") if file.suffix == ".gz" else file
    if file.exists() and plain.suffix not in SUFFIXES:
        raise EditError(f"{path} is no kind of file that is read here; an edit set ends in {_listed(SUFFIXES)}.")
    if not file.exists():
        if plain.suffix in SUFFIXES or not _HUB_ID.fullmatch(path):
            raise EditError(f"There is no file {path}; give the path of a {_listed(SUFFIXES)} file or a hub id owner/name.")
        yield from _hub(path)
        return
    if plain.suffix == ".parquet":
        yield from _loaded(path, "parquet", {"data_files": str(file), "streaming": True}, "train")
        return
    content = _text(path, file)
    if not content.strip():
        raise EditError(f"{path} is empty; an edit set holds one record for each fact.")
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    yield from readers[plain.suffix](content, path)


def _text(path: str, file: Path) -> str:
    """The whole file as text, without a byte order mark.

    Bytes that are no UTF-8 become lone surrogates, so that they cost only the rows that use them: ``reader.as_text`` names
    them. A file in UTF-16 or UTF-32 is refused as a whole, there are no rows to find in it.
    """
    try:
        with file.open("rb") as stream:
            data = gzip.decompress(stream.read()) if file.suffix == ".gz" else stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EditError(f"{path} is a damaged gzip file ({error}); unpack what is left and give that file.") from None
    except OSError as error:
        raise EditError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from None
    # JSON and tables begin with ASCII, of which these encodings make every other byte zero.
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        wrong = data[0] if data[0] >= 0x80 else 0
        raise EditError(
            f"{path} is not UTF-8 text: byte 0x{wrong:02x} in line 1 does not belong there; save the file as UTF-8."
        )
    return data.decode("utf-8-sig", errors="surrogateescape")


def _json(content: str, path: str) -> Iterator[Row]:
    """A list of records, a single record, or JSON lines under a ``.json`` name (common on the hub)."""
    start = _skip(content, 0)
    if content[start] == "[":
        yield from _json_list(content, path, start + 1)
        return
    try:
        value, end = json.JSONDecoder().raw_decode(content, start)
    except (ValueError, RecursionError) as error:
        yield 1, _unreadable(path, 1, content[start:], f"is not complete JSON ({error})")
        return
    if content[end:].strip():
        yield from _json_lines(content, path)
    elif isinstance(value, dict):
        yield 1, value
    else:
        raise EditError(f"{path} holds {kind(value)}; an edit set is a list of records, [{{...}}, {{...}}].")


def _json_list(content: str, path: str, at: int) -> Iterator[Row]:
    """The records of a list one by one, so that those before a damaged place are kept."""
    decoder = json.JSONDecoder()
    number, found_any = 0, False
    at = _skip(content, at)
    while not content.startswith("]", at):
        number += 1
        if at >= len(content):
            yield number, _unreadable(path, number, "", "is missing: the list is not closed, the file is cut off here")
            return
        try:
            value, at = decoder.raw_decode(content, at)
        except (ValueError, RecursionError) as error:
            reason = f"is not complete JSON ({error}); the records before it were kept, nothing after it could be read"
            yield number, _unreadable(path, number, content[at:], reason)
            return
        yield number, _record(value, path, number)
        found_any = True
        at = _skip(content, at)
        if content.startswith(",", at):
            at = _skip(content, at + 1)
        elif at < len(content) and content[at] != "]":
            number += 1
            reason = "does not follow a comma; the records before it were kept, nothing after it could be read"
            yield number, _unreadable(path, number, content[at:], reason)
            return
    if rest := content[at + 1 :].strip():
        yield number + 1, _unreadable(path, number + 1, rest, "stands behind the end of the list")
    elif not found_any:
        raise EditError(f"{path} holds an empty list; an edit set holds one record for each fact.")


def _json_lines(content: str, path: str) -> Iterator[Row]:
    """One record to a line; blank lines are no rows, but count as lines."""
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _record(json.loads(line), path, number)
        except (ValueError, RecursionError) as error:
            yield number, _unreadable(path, number, line, f"is not one complete JSON record ({error})")


def _csv(content: str, path: str) -> Iterator[Row]:
    """Records of a table with a header.

    The standard library's reader rather than the one of ``datasets``, which guesses types: a target ``1984`` would
    become a number and a target ``NA`` would vanish.
    """
    table = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        names = list(table.fieldnames or ())
    except csv.Error as error:
        raise EditError(f"{path} begins with a header that is not a complete line of a table ({error}).") from None
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise EditError(f"{path} has two columns called {brief(twice[0])}, of which only one would count; rename one.")
    number = 0
    while True:
        number += 1
        try:
            row = next(table)
        except StopIteration:
            break
        except csv.Error as error:
            yield number, _unreadable(path, number, "", f"is not a complete line of a table ({error})")
            continue
        if extra := row.pop(None, None):  # where the reader puts cells that no column is named for
            reason = f"has more cells than the header, the first of them {brief(extra[0])}; put texts with commas in quotes"
            yield number, SetAside(where(path, number), "*", reason, row)
        else:
            yield number, row
    if number == 1:
        raise EditError(f"{path} holds a header and no rows; an edit set holds one row for each fact.")


def _folder(path: str, folder: Path, split: str | None) -> Iterator[Row]:
    """A folder written by ``Dataset.save_to_disk``, or one that ``load_dataset`` understands."""
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        yield from _loaded(path, None, {"dataset_path": str(folder)}, split)
    elif any(file.suffix in SUFFIXES for file in folder.rglob("*")):
        yield from _loaded(path, str(folder), {"streaming": True}, split)
    else:
        raise EditError(f"{path} is a folder without a data set in it; name a {_listed(SUFFIXES)} file.")


def _hub(path: str) -> Iterator[Row]:
    """A data set on the hub, or in the local cache of ``datasets``."""
    match = _HUB_ID.fullmatch(path)
    assert match is not None
    yield from _loaded(path, match["name"], {}, match["split"])


def _loaded(path: str, name: str | None, arguments: dict[str, Any], split: str | None) -> Iterator[Row]:
    """Rows through Hugging Face ``datasets``; it is imported here because that takes a second.

    Args:
        path: what the user wrote, for messages.
        name: first argument of ``load_dataset``, or ``None`` for ``load_from_disk``.
        arguments: further arguments; local files are streamed, or a copy of them would go to the user's cache.
        split: the split to take, or ``None`` if there should be only one.
    """
    import datasets

    try:
        data = datasets.load_from_disk(**arguments) if name is None else datasets.load_dataset(name, **arguments)
    except Exception as error:  # a dozen kinds, from three libraries, for one situation
        raise EditError(_not_loaded(path, name, error)) from error
    if isinstance(data, dict):
        names = [str(key) for key in data]
        if split is None and len(names) > 1:
            raise EditError(f"{path} has the splits {_listed(names)}; name one, as in {path}:{names[0]}.")
        if split is not None and split not in names:
            raise EditError(f"{path} asks for the split {split!r}, but the data set has {_listed(names)}.")
        data = data[split or names[0]]
    number = 0
    try:
        for number, row in enumerate(data, start=1):
            yield number, _record(row, path, number)
    except EditError:
        raise
    except Exception as error:
        raise EditError(
            f"{path} cannot be read behind row {number} ({first_line(error)}); fetch or write the file again."
        ) from error
    if number == 0:
        raise EditError(f"{path} holds no rows; an edit set holds one row for each fact.")


def _not_loaded(path: str, name: str | None, error: Exception) -> str:
    """The sentence for a data set that ``datasets`` would not load."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    if name is None or Path(path).expanduser().exists():
        return f"{path} cannot be read as a data set ({reason}); name a {_listed(SUFFIXES)} file that can."
    return (
        f"There is no file {path}, and the Hugging Face hub and the local cache gave no data set {name!r} ({reason}); "
        f"give the path of a {_listed(SUFFIXES)} file, or the id owner/name of a data set that can be reached."
    )


def _record(value: Any, path: str, number: int) -> dict[str, Any] | SetAside:
    """The value if it is an object, or the reason why it is no row."""
    if isinstance(value, dict):
        return value
    return SetAside(where(path, number), "*", f"is {kind(value)}; a row is an object of named fields", value)


def _unreadable(path: str, number: int, content: str, reason: str) -> SetAside:
    return SetAside(where(path, number), "*", reason, content[:_KEPT] or None)


def _skip(content: str, at: int) -> int:
    """The next position that is no white space."""
    while at < len(content) and content[at] in " \t\r\n":
        at += 1
    return at


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
