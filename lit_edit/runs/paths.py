"""Paths as users name them, and folders that a run can write to."""

from __future__ import annotations

import tempfile
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


def unused(folder: Path) -> Path:
    """The folder itself if nothing is there, or the next free sibling ``name-2``, ``name-3``, ..."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def check_writable(folder: Path) -> None:
    """Raise an :class:`EditError` unless the run folder can be made and written to, by all that writes there."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise EditError(
            f"--run_dir is {folder}, which is no text in UTF-8, and TensorBoard takes no other; choose another"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EditError(
            f"the run folder {folder} cannot be written to ({error.strerror}); choose another with --run_dir"
        ) from None
