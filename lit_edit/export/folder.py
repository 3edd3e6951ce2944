"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lit_edit.errors import EditError


def check_target(folder: Path) -> None:
    """Refuse a place that something else has.

    Raises:
        EditError: if it is a file, or a folder that holds anything.
    """
    try:
        taken = folder.exists()
        if taken and not folder.is_dir():
            raise EditError(f"--to is {folder}, which is a file; name a new folder")
        if taken and any(folder.iterdir()):
            raise EditError(f"--to is {folder}, which is not empty; name a new or an empty folder, what is there stays")
    except OSError as error:
        raise EditError(f"--to is {folder}, which cannot be looked into: {error.strerror}; name another folder") from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``target`` at the end of the block.

    It is a sibling of ``target`` whose name begins with a dot. Its files are flushed to disk before it is renamed, and the
    rename is one step that replaces nothing but an empty folder. What interrupts the block removes it; what leaves no time for
    that (a power cut) leaves the sibling and no ``target``.

    Args:
        target: new or empty; folders above it are made.

    Raises:
        EditError: if the place is taken, or the disk takes no more.
    """
    check_target(target)
    place = target.resolve()  # a link to an empty folder stays a link
    half = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        half.mkdir()
        try:
            yield half
            _flush(half)
            os.rename(half, place)
            _flush_one(place.parent)  # the rename itself must survive a power cut
        except BaseException:
            shutil.rmtree(half, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        told = getattr(error, "strerror", None) or error
        raise EditError(f"the folder {target} cannot be written: {told}") from error


def _flush(folder: Path) -> None:
    """Flush a folder with everything in it."""
    readable = folder.stat().st_mode & 0o666  # what the umask left of a new folder; safetensors makes files for one user only
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(readable)
        _flush_one(path)


def _flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
