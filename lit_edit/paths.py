"""Paths as users name them."""

from __future__ import annotations

from pathlib import Path

from lit_edit.errors import EditError, brief


def named(path: str | Path, what: str) -> Path:
    """A path with ``~`` resolved; whether anything is there is another question.

    >>> named("facts.jsonl", "the edit set").name
    'facts.jsonl'

    Args:
        path: as it was given.
        what: what it is the path of, for the sentence.

    Raises:
        EditError: if no file can have that path: it is empty, too long, holds a null byte, or begins with somebody's home that
            is not known; or if it lies where nobody may look.
    """
    try:
        if not str(path).strip() or "\0" in str(path):
            raise OSError(None, "it is empty" if "\0" not in str(path) else "it holds a null byte")
        found = Path(path).expanduser()
        found.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EditError(f"the path of {what} is {brief(str(path))}, where no file can be ({reason})") from None
    return found
