"""Checkpoints as one safetensors file: tensors beside JSON, checksummed, replaced atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lit_edit.errors import EditError
from lit_edit.store import fingerprint, write_atomically


class SafetensorsCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoint dictionary as safetensors with the rest as JSON in the header.

    A file is whole or absent: it is written under a temporary name, flushed to disk and renamed, and its checksum is tested
    when it is read. Nothing in it can run code, which a pickle could.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            EditError: if the folder cannot be written to.
            TypeError: if the checkpoint holds something that is neither a tensor nor plain data.
        """
        tensors: dict[str, torch.Tensor] = {}
        text = json.dumps(_encode(checkpoint, "checkpoint", tensors))
        header = {"format": "lit_edit-1", "checkpoint": text, "sha256": _checksum(text, tensors)}
        write_atomically(Path(path), save(tensors, metadata=header))

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            EditError: if it does not exist, is damaged, or was not written by this class.
        """
        if not Path(path).is_file():
            raise EditError(f"there is no checkpoint {path}")
        device = map_location if isinstance(map_location, str | torch.device) else "cpu"
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise EditError(f"the checkpoint {path} is damaged or was not written by lit_edit ({error})") from None
        text = header.get("checkpoint")
        if text is None:
            raise EditError(f"{path} is a safetensors file but no checkpoint of lit_edit")
        if header.get("sha256") != _checksum(text, tensors):
            raise EditError(f"the checkpoint {path} is damaged: its checksum does not fit; use an earlier one")
        return _decode(json.loads(text), tensors)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(text.encode() + fingerprint(tensors).encode()).hexdigest()


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


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(_decode(part, tensors) for part in value["__tuple__"])
    if "__items__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__items__"]}
    return {key: _decode(part, tensors) for key, part in value.items()}
