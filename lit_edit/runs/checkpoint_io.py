"""Checkpoints as one safetensors file: tensors beside JSON, checksummed, replaced atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lit_edit.errors import EditError
from lit_edit.store import write_atomically

FORMAT = "lit_edit-2"
"""Layout of the file; a reader refuses another one."""

_BLANK = b"0" * 64
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_LARGEST_HEADER = 100 * 2**20
_PIECE = 2**22


class SafetensorsCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoint dictionary as safetensors with the rest as JSON in the header.

    A file is whole or absent: it is written under a temporary name, flushed to disk, read back, and only renamed once every
    byte of it was found as it was meant; until then the file that bore the name before stays. The same checksum is tested
    whenever a checkpoint is read. Nothing in it can run code, which a pickle could.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            EditError: if the folder cannot be written to, or the disk does not give back what was written.
            TypeError: if the checkpoint holds something that is neither a tensor nor plain data.
        """
        tensors: dict[str, torch.Tensor] = {}
        text = json.dumps(_encode(checkpoint, "checkpoint", tensors))
        content = save(tensors, metadata={"format": FORMAT, "checkpoint": text, "sha256": _BLANK.decode()})
        seal = _SEAL.search(content, 0, 8 + int.from_bytes(content[:8], "little"))
        assert seal is not None  # no other part of the header can look like it: quotes inside of strings are escaped
        parts, digest = memoryview(content), hashlib.sha256(content).hexdigest().encode()

        def read_back(written: Path) -> None:
            try:
                prove(written)
            except EditError as error:
                raise EditError(f"the disk does not give back what was written to {path}; it stays as it was") from error

        write_atomically(Path(path), parts[: seal.start(1)], digest, parts[seal.end(1) :], check=read_back)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            EditError: if it does not exist, is damaged, or was not written by this class.
        """
        prove(Path(path))
        device = map_location if isinstance(map_location, str | torch.device) else "cpu"
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                text = (file.metadata() or {})["checkpoint"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise EditError(f"the checkpoint {path} is damaged or was not written by lit_edit ({error})") from None
        content: dict[str, Any] = _decode(json.loads(text), tensors)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, unproven: the project's entry of it, with ``None`` for every tensor.

    Raises:
        EditError: if it does not exist or has no header of a checkpoint.
    """
    return _own(_read(path, whole=False)[0])


def prove(path: Path) -> dict[str, Any]:
    """Read every byte of a checkpoint and compare it with the checksum in its header.

    The checksum is the SHA-256 of the whole file, with 64 zeros where the checksum itself stands.

    Returns:
        As :func:`header`.

    Raises:
        EditError: if it does not exist, is damaged, or was not written by :class:`SafetensorsCheckpointIO`.
    """
    said, fits = _read(path, whole=True)
    if not fits:
        if re.fullmatch(r"lit_edit-\d+", str(said.get("format"))) and said["format"] != FORMAT:
            raise EditError(f"the checkpoint {path} has the format {said['format']}, this version reads {FORMAT}; run it anew")
        raise EditError(f"the checkpoint {path} is damaged: its checksum does not fit; use an earlier one")
    return _own(said)


def _read(path: Path, whole: bool) -> tuple[dict[str, Any], bool]:
    """The header's metadata, and whether the checksum fits (never, where the file was not read as a whole)."""
    if not path.is_file():
        raise EditError(f"there is no checkpoint {path}")
    foreign = f"the checkpoint {path} is damaged or was not written by lit_edit"
    try:
        with path.open("rb") as file:
            if whole and hasattr(os, "posix_fadvise"):  # what the disk holds is asked for, not what memory holds
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_LARGEST_HEADER, path.stat().st_size):
                raise EditError(f"{foreign} (its header is cut off)")
            head = file.read(length)
            said = _metadata(head)
            if said is None:
                raise EditError(f"{foreign} (its header is no safetensors header)")
            if "checkpoint" not in said:
                raise EditError(f"{path} is a safetensors file but no checkpoint of lit_edit")
            seal = _SEAL.search(head)
            if seal is None or not whole:
                return said, False
            digest = hashlib.sha256(start + head[: seal.start(1)] + _BLANK + head[seal.end(1) :])
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise EditError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    return said, seal[1].decode() == digest.hexdigest()


def _own(said: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(said["checkpoint"]).get("lit_edit")
        return _decode(found, None) if isinstance(found, dict) else {}
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}  # damaged: the checksum will say so


def _metadata(head: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(head)
    except ValueError:
        return None
    said = found.get("__metadata__", {}) if isinstance(found, dict) else None
    return said if isinstance(said, dict) else None


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain JSON for ``value``; tensors are collected under their path."""
    if isinstance(value, torch.Tensor):
        # safetensors refuses tensors that share memory; a clone is also safe from later edits in place.
        tensors[where] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": where}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _encode(part, f"{where}/{key}", tensors) for key, part in value.items()}
        pairs = enumerate(value.items())
        return {
            "__items__": [[_encode(k, f"{where}/k{i}", tensors), _encode(v, f"{where}/v{i}", tensors)] for i, (k, v) in pairs]
        }
    if isinstance(value, list | tuple):
        parts = [_encode(part, f"{where}/{index}", tensors) for index, part in enumerate(value)]
        return parts if isinstance(value, list) else {"__tuple__": parts}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain data only")


def _decode(value: Any, tensors: dict[str, torch.Tensor] | None) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return None if tensors is None else tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(_decode(part, tensors) for part in value["__tuple__"])
    if "__items__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__items__"]}
    return {key: _decode(part, tensors) for key, part in value.items()}
