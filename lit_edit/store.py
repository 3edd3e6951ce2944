"""Content-addressed artefacts: second moments and spectra, computed once, checked whenever they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.options.documents import load_json

log = logging.getLogger(__name__)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_atomically(path: Path, *content: bytes | memoryview, check: Callable[[Path], object] | None = None) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part: temporary name, fsync, rename.

    Args:
        path: the file.
        content: its parts, in order.
        check: called with the finished file before it takes the place of the old one; what it raises leaves the old one.

    Raises:
        EditError: if the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        # Not tempfile: that makes files only their owner can read, whatever the umask says.
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(name)
            os.replace(name, path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise EditError(f"{path} cannot be written: {error.strerror}") from error


def append_durably(path: Path, content: bytes) -> None:
    """Add to the end of a file and flush it to disk; what fails half-way is taken off again.

    Raises:
        EditError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                os.truncate(path, before)  # a full disk takes half a line; what comes next must not follow on it
            raise
    except OSError as error:
        raise EditError(f"{path} cannot be written: {error.strerror}") from error


class Store:
    """A folder of artefacts, each under the hash of what it is.

    An artefact's *identity* (kind, weights, layer, corpus, ...) is plain JSON. Its SHA-256 is the file name; the file is
    safetensors, beside it lies a JSON with the identity and the SHA-256 of the tensor file. A damaged artefact is computed
    anew; one whose identity is not the one asked for is refused.

    Args:
        folder: where the artefacts lie; created when the first one is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, identity: dict[str, Any]) -> Path:
        """Where the tensors of an artefact lie (or would lie)."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.folder / str(identity["kind"]) / f"{digest[:32]}.safetensors"

    def get(self, identity: dict[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of an artefact, or ``None`` if there is none that is whole.

        Raises:
            EditError: if the file at its address belongs to something else (other weights, another corpus).
        """
        path = self.path(identity)
        note = path.with_suffix(".json")
        if not path.exists() or not note.exists():
            return None
        try:
            content = path.read_bytes()
            said = load_json(note.read_text(encoding="utf-8"))
            found, checksum = dict(said["identity"]), said["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); computing it anew", path, type(error).__name__)
            return None
        if found != identity:
            other = next(key for key in sorted({*found, *identity}) if found.get(key) != identity.get(key))
            raise EditError(
                f"the cached {identity['kind']} {path} belongs to another {other} ({_short(found.get(other))} instead of "
                f"{_short(identity.get(other))}); delete the file or name another --model.cache_dir"
            )
        if hashlib.sha256(content).hexdigest() != checksum:
            log.warning("%s is damaged (its checksum differs); computing it anew", path)
            return None
        try:
            # Copied to where torch puts its own: in the file they lie at odd addresses, where sums may round otherwise.
            return {name: value.clone() for name, value in load(content).items()}
        except SafetensorError:
            log.warning("%s is damaged; computing it anew", path)
            return None

    def put(self, identity: dict[str, Any], tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> Path:
        """Write an artefact; the JSON comes last, so that an interrupted write leaves nothing that counts.

        Args:
            identity: what it is.
            tensors: what it holds.
            about: plain JSON for whoever reads the note beside it; nothing depends on it.

        Raises:
            EditError: if the folder cannot be written to.
        """
        path = self.path(identity)
        content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        write_atomically(path, content)
        note = {"identity": identity, "sha256": hashlib.sha256(content).hexdigest(), **({"about": about} if about else {})}
        write_atomically(path.with_suffix(".json"), json.dumps(note, indent=1, sort_keys=True).encode())
        return path


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 16 else text[:12] + "..."
