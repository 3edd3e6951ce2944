"""Which checkpoint of a folder a run goes on from: the newest one of which every byte is as it was written."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.runs.checkpoint_io import header, prove
from lit_edit.store import write_atomically


@dataclass(frozen=True)
class Proven:
    """A checkpoint that was read from its first byte to its last.

    Args:
        path: the file.
        batches: batches of the run that lie behind it.
        passed_over: one sentence about every other file that cannot be used and might have been newer.
    """

    path: Path
    batches: int
    passed_over: tuple[str, ...]


def newest(folder: Path) -> Proven | None:
    """The newest proven checkpoint of a folder; ``None`` where there is no checkpoint at all.

    Files are taken in the order of the batches that they claim to hold, ``last.ckpt`` first among equals; what cannot even say
    that much is passed over. A name that begins with a dot is a file that was never finished, which counts as none.

    Raises:
        EditError: if there are checkpoints, but none that can be used: to begin anew would throw their run away.
    """
    claims: list[tuple[int, bool, Path]] = []
    passed_over: list[str] = []
    for path in sorted(folder.glob("[!.]*.ckpt")):
        try:
            claims.append((_batches(header(path)), path.name == "last.ckpt", path))
        except EditError as error:
            passed_over.append(str(error))
    for _, _, path in sorted(claims, reverse=True):
        try:
            return Proven(path, _batches(prove(path)), tuple(passed_over))
        except EditError as error:
            passed_over.append(str(error))
    if passed_over:
        raise EditError(f"none of the checkpoints in {folder} can be used ({'; '.join(passed_over)}); choose another --run_dir")
    return None


def renew_last(path: Path) -> None:
    """Let ``last.ckpt`` be what a run goes on from, where it is damaged or the run was killed before it could be renewed."""
    last = path.with_name("last.ckpt")
    if path != last and not also_called(path, last):
        write_atomically(last, path.read_bytes(), check=prove)


def also_called(path: Path, name: Path) -> bool:
    """Let ``name`` be another name of a file, in the place of whatever bore it; ``False`` where the file system cannot."""
    half = name.with_name(f".{name.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.link(path, half)
        os.replace(half, name)
    except OSError:
        return False
    finally:
        half.unlink(missing_ok=True)  # a file renamed to its own other name stays where it is
    return True


def _batches(said: dict[str, Any]) -> int:
    found = said.get("batches")
    return found if isinstance(found, int) else -1
