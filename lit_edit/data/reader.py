"""What a schema has to say about its rows, and the checks that all schemas share.

A reader is one class in one file. It looks at one row at a time and knows nothing of files, so the same class serves a
JSON list, JSON lines, CSV, Parquet and the Hugging Face hub.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.errors import MalformedRecord, brief
from lit_edit.request import EditRequest

_MISSING = object()


class Reader(ABC):
    """Turns rows of one schema into edit requests.

    A new schema is one subclass; name it on the command line (``--data.reader my_pkg.MyReader``) and nothing else has
    to change.
    """

    schema: ClassVar[str]
    """The fields that make the schema, for messages to the user."""

    @classmethod
    @abstractmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Whether this row looks like the schema, even if something in it is wrong.

        It should look at the names of fields only: a row with a bad value is still the schema's to judge.
        """

    @abstractmethod
    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row.

        Args:
            row: the record as it was read.
            source: file (or data set) and row, for messages and for ``EditRequest.source``.
            index: the row's number within its file, counted from 1.

        Raises:
            MalformedRecord: if the row cannot be used; it names the field as the file spells it.
        """

    def requests(self, row: Mapping[str, Any], source: str, index: int) -> tuple[EditRequest, ...]:
        """Read one row that may hold several edits; this is what the stream calls.

        Most schemas hold one edit to a row and leave this as it is. The edits of a row are made in the order given here
        and stay neighbours in a shuffled stream; if one of them cannot be used, the whole row is set aside.

        Args:
            row: the record as it was read.
            source: file (or data set) and row; all edits of a row share it.
            index: the row's number within its file, counted from 1.

        Raises:
            MalformedRecord: as for :meth:`request`.
        """
        return (self.request(row, source, index),)


def kind(value: Any) -> str:
    """What a JSON value is, in the user's words.

    >>> kind(["a"]), kind(None), kind(3)
    ('a list', 'nothing (null)', 'a number')
    """
    if value is None:
        return "nothing (null)"
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        tuple: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, ``None`` if any part of the way is absent; items of lists go by their number.

    >>> lookup({"a": {"b": 1}}, "a.b"), lookup({}, "a.b"), lookup({"a": [{"b": 1}]}, "a[0].b")
    (1, None, 1)
    """
    value: Any = row
    for part in path.replace("[", ".[").split("."):
        if part.startswith("["):
            at = int(part[1:-1])
            value = value[at] if isinstance(value, (list, tuple)) and at < len(value) else _MISSING
        else:
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            return None
    return value


def text(row: Mapping[str, Any], path: str, meaning: str) -> str:
    """The text at a dotted path, without surrounding blanks.

    Args:
        row: the record.
        path: where to look, as the file spells it, with dots between levels.
        meaning: what the field is for, ending the sentence "it is ...".

    Raises:
        MalformedRecord: if the field is missing, no text, empty, or cannot be written as UTF-8.
    """
    value = lookup(row, path)
    if value is None:
        raise MalformedRecord(path, f"is missing; it is {meaning}")
    return as_text(value, path, meaning)


def as_text(value: Any, path: str, meaning: str) -> str:
    """Check a value that should be text; arguments and errors as for :func:`text`."""
    if not isinstance(value, str):
        raise MalformedRecord(path, f"holds {kind(value)} ({brief(value)}), not text; it is {meaning}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON may spell half of a surrogate pair; tokenizers refuse it much later, with no hint at the row. Bytes that are no
        # UTF-8 come from the file as the halves U+DC80 to U+DCFF (Python's "surrogateescape").
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            found = f"byte 0x{code - 0xDC00:02x} at character {error.start + 1}"
            raise MalformedRecord(path, f"is not UTF-8 text ({found}); save the file as UTF-8") from None
        found = f"{value[error.start]!r} at character {error.start + 1}"
        raise MalformedRecord(path, f"holds half a character ({found}); write the text as plain UTF-8") from None
    if not value.strip():
        raise MalformedRecord(path, f"is empty; it is {meaning}")
    return value.strip()


def optional_text(row: Mapping[str, Any], path: str, meaning: str) -> str | None:
    """Like :func:`text`, but an absent, null or empty field is ``None``."""
    return None if lookup(row, path) in (None, "") else text(row, path, meaning)


def texts(row: Mapping[str, Any], path: str, meaning: str) -> tuple[str, ...]:
    """A list of texts; absent or null is the empty tuple, one text is a list of one.

    Raises:
        MalformedRecord: if the field is neither, or an item is no text or empty; the item is named ``path[0]``.
    """
    value = lookup(row, path)
    if value in (None, ""):
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise MalformedRecord(path, f"holds {kind(value)} ({brief(value)}), not a list; it is {meaning}")
    return tuple(as_text(item, f"{path}[{i}]", meaning) for i, item in enumerate(value))


def identifier(row: Mapping[str, Any], index: int, path: str = "case_id") -> str:
    """The row's own identifier as text, or its number within the file where it has none.

    Raises:
        MalformedRecord: if it is a list or an object, or a text that cannot be written as UTF-8.
    """
    value = lookup(row, path)
    if value is None or (isinstance(value, str) and not value.strip()):
        return str(index)
    if isinstance(value, (list, tuple, dict)):
        raise MalformedRecord(
            path, f"holds {kind(value)} ({brief(value)}), not text or a number; it is the identifier of the row"
        )
    return as_text(value if isinstance(value, str) else str(value), path, "the identifier of the row")


def template(prompt: str, subject: str, *, prompt_field: str = "prompt", subject_field: str = "subject") -> str:
    """The prompt with ``{}`` where the subject stands.

    A prompt that already holds ``{}`` is returned as it is. Otherwise the **last** occurrence of the subject is
    replaced and earlier ones stay as text: the model reads the subject's value at its last mention, and a prompt with
    several ``{}`` has no single place to edit. An occurrence that is a word of its own is preferred to one inside
    another word.

    >>> template("Is Bo in Bonn? Bo is", "Bo")
    'Is Bo in Bonn? {} is'

    Raises:
        MalformedRecord: if the prompt holds ``{}`` more than once, or neither ``{}`` nor the subject.
    """
    slots = prompt.count("{}")
    if slots > 1:
        raise MalformedRecord(prompt_field, f"holds '{{}}' {slots} times, {brief(prompt, 200)}; mark the subject exactly once")
    if slots:
        return prompt
    return literal_template(prompt, subject, prompt_field=prompt_field, subject_field=subject_field)


def literal_template(prompt: str, subject: str, *, prompt_field: str, subject_field: str) -> str:
    """Like :func:`template` for schemas without placeholders, where ``{}`` in a prompt is ordinary text.

    Single braces are harmless. The pair ``{}`` outside the subject is not: a request marks the subject with it, so such
    a prompt cannot be expressed, and the row is set aside rather than silently changed.

    Raises:
        MalformedRecord: if the subject does not occur in the prompt, or ``{}`` stands elsewhere in it.
    """
    whole_words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    start = whole_words[-1].start() if whole_words else prompt.rfind(subject)
    if start < 0:
        raise MalformedRecord(
            subject_field,
            f"{brief(subject)} does not occur in the {prompt_field} {brief(prompt, 200)}; spell it as the prompt does",
        )
    before, after = prompt[:start], prompt[start + len(subject) :]
    result = f"{before}{{}}{after}"
    if result.count("{}") > 1:
        raise MalformedRecord(
            prompt_field, f"holds the text '{{}}' besides the subject, {brief(prompt, 200)}; '{{}}' can only mark the subject"
        )
    return result
