"""Texts that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.metrics.text import TfIdf
from lit_edit.options.documents import load_json
from lit_edit.request import EditRequest


@dataclass(frozen=True)
class References:
    """Reference texts by answer, and the vocabulary they are compared under.

    A text is about something that truly has the answer. Texts named for a relation as well are taken for edits of that
    relation before those that are not.
    """

    texts: Mapping[tuple[str, str | None], Sequence[str]]
    """Texts by answer and relation (``None`` for any)."""
    tfidf: TfIdf
    fitted_on: str
    """What the vocabulary was fitted on, as a name of lower-case words."""

    @classmethod
    def load(cls, references: str | Path, vocabulary: str | Path, separator: str = "\n\n") -> References:
        """Read reference texts and fit the vocabulary.

        Args:
            references: JSON lines with ``target`` (the answer), ``text`` and, optionally, ``relation``.
            vocabulary: a UTF-8 text file whose documents are separated by ``separator``, or a TF-IDF file (``.json``).
            separator: what stands between two documents.

        Raises:
            EditError: if a file cannot be read or a line lacks a field.
        """
        path = Path(vocabulary)
        if path.suffix == ".json":
            tfidf = TfIdf.load(path)
        else:
            documents = [part.strip() for part in _text(path).split(separator) if part.strip()]
            if not documents:
                raise EditError(f"{path} holds no text to fit a vocabulary on")
            tfidf = TfIdf.fit(documents)
        found: dict[tuple[str, str | None], list[str]] = {}
        for number, line in enumerate(_text(Path(references)).splitlines(), start=1):
            if line.strip():
                target, relation, text = _reference(line, f"{references}, row {number}")
                found.setdefault((target, relation), []).append(text)
        if not found:
            raise EditError(f"{references} holds no reference text")
        name = "".join(character if character.isalnum() else "_" for character in path.stem.lower())
        return cls(found, tfidf, name)

    def of(self, request: EditRequest) -> Sequence[str]:
        """Reference texts for the new answer of an edit; empty if there are none."""
        own = self.texts.get((request.target_new, request.relation))
        return own if own else self.texts.get((request.target_new, None), ())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EditError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror}") from None


def _reference(line: str, where: str) -> tuple[str, str | None, str]:
    try:
        row: Any = load_json(line)
    except ValueError:
        raise EditError(f"{where} is no JSON; a reference is an object with 'target' and 'text'") from None
    for field in ("target", "text"):
        if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field].strip():
            raise EditError(f"{where}: field {field!r} is missing or empty; a reference is an object with 'target' and 'text'")
    relation = row.get("relation")
    return row["target"].strip(), None if relation is None else str(relation), row["text"]
