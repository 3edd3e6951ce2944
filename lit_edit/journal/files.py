"""The tensor files of a journal: one for every batch that changed a weight, and one for what was folded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.store import fingerprint, write_atomically

LARGEST = 2**36
"""Bytes of a file that is read: 64 GiB, the dense weights of five layers of a model of 400 billion parameters."""
_BASE = re.compile(r"base-(\d{6,})-([0-9a-f]{16})\.safetensors")


def batch_name(number: int) -> str:
    """Where the factors of a batch lie, below the run folder.

    >>> batch_name(12)
    'journal/batch-000012.safetensors'
    """
    return f"journal/batch-{number:06d}.safetensors"


def write(run: Path, name: str, layers: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write what a batch did to its layers, atomically.

    Returns:
        What its record says of it: ``file``, ``bytes`` and ``sha256``.

    Raises:
        EditError: if the file cannot be written.
    """
    data = _packed(layers)
    write_atomically(run / name, data)
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read(run: Path, number: int, said: Any) -> dict[int, dict[str, Tensor]]:
    """What a batch did to its layers, if the file is the one that its record names.

    Args:
        run: the run folder.
        number: of the batch.
        said: ``factors`` of its record.

    Raises:
        EditError: naming the file and the record, if it is missing, larger than said, altered or of another form.
    """
    name = batch_name(number)
    if not isinstance(said, dict) or said.get("file") != name:
        # Compared and never joined: what a record says is no path.
        raise EditError(f"record {number} of {run / 'journal.jsonl'} names another file than {name}")
    data = contained(run, name, f"record {number}", said.get("bytes"))
    if hashlib.sha256(data).hexdigest() != said.get("sha256"):
        raise EditError(f"{run / name} is damaged: its hash is not the one in record {number}")
    return _unpacked(data, run / name)


def base(run: Path) -> tuple[int, Path] | None:
    """What earlier batches were folded into: how many, and the file; ``None`` if they were not."""
    found = [(int(match[1]), path) for path in _listed(run) if (match := _BASE.fullmatch(path.name))]
    return max(found, default=None)


def write_base(run: Path, number: int, weights: Mapping[int, Tensor]) -> Path:
    """Write the weights behind the first ``number`` batches; the file's name holds the beginning of its hash."""
    data = _packed({layer: {"weight": weight} for layer, weight in weights.items()})
    path = run / "journal" / f"base-{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    write_atomically(path, data)
    return path


def read_base(run: Path, path: Path) -> dict[int, Tensor]:
    """The weights of a file that :func:`write_base` made.

    Raises:
        EditError: if it is damaged.
    """
    match = _BASE.fullmatch(path.name)
    data = contained(run, f"journal/{path.name}", "its name", None)
    if match is None or not hashlib.sha256(data).hexdigest().startswith(match[2]):
        raise EditError(f"{path} is damaged: its hash is not the one in its name")
    layers = _unpacked(data, path)
    if any(set(tensors) != {"weight"} for tensors in layers.values()):
        raise EditError(f"{path} holds something else than weights")
    return {layer: tensors["weight"] for layer, tensors in layers.items()}


def clean(run: Path, keep: Iterable[str]) -> None:
    """Remove files of batches and bases that no record stands for, and what interrupted writes left behind."""
    kept = set(keep)
    for path in _listed(run):
        ours = re.fullmatch(r"\.?(batch|base)-\d{6,}.*\.safetensors(\.[\w-]+)?", path.name)
        if ours and f"journal/{path.name}" not in kept:
            path.unlink(missing_ok=True)


def contained(
    run: Path, name: str, who: str, size: Any, *, largest: int = LARGEST, whose: str = "the run folder", remedy: str = ""
) -> bytes:
    """The content of a file below a folder, whatever links lie on the way.

    Args:
        run: the folder, of a run or of anything else that may come from elsewhere.
        name: path below it.
        who: what says that the file should be there, for messages.
        size: its bytes, if known.
        largest: bytes that are read at most.
        whose: what the folder is, for messages.
        remedy: what helps where the file is missing, for messages.

    Raises:
        EditError: if it is missing, outside, larger than ``largest``, or of another size.
    """
    path = run / name
    try:
        if not path.is_file():
            raise EditError(f"{path} is missing, and {who} needs it{remedy}")
        if not path.resolve().is_relative_to(run.resolve()):
            raise EditError(f"{path} leads out of {whose} {run}; only files that lie in it are read")
        found = path.stat().st_size
        if found > largest or (size is not None and found != size):
            raise EditError(f"{path} is damaged: it has {found} bytes, and {who} says {size or f'at most {largest}'}")
        return path.read_bytes()
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror}") from error


def hashes(weights: Mapping[int, Tensor]) -> dict[str, str]:
    """SHA-256 of every layer's weight, by layer; layers side by side, since hashing lets other threads run."""
    layers = sorted(weights)
    with ThreadPoolExecutor(max_workers=max(1, min(8, len(layers)))) as pool:
        found = pool.map(lambda layer: fingerprint({"weight": weights[layer]}), layers)
        return {str(layer): digest for layer, digest in zip(layers, found, strict=True)}


def _listed(run: Path) -> list[Path]:
    folder = run / "journal"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _packed(layers: Mapping[int, Mapping[str, Tensor]]) -> bytes:
    named = {f"{layer}.{name}": value for layer, tensors in layers.items() for name, value in tensors.items()}
    return save({name: value.detach().cpu().contiguous() for name, value in named.items()})


def _unpacked(data: bytes, path: Path) -> dict[int, dict[str, Tensor]]:
    try:
        named = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise EditError(f"{path} is damaged or no safetensors file ({error})") from None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in named.items():
        layer, _, what = name.partition(".")
        if not layer.isdecimal() or len(layer) > 6:
            raise EditError(f"{path} holds a tensor {name!r}; names begin with a layer's number")
        layers.setdefault(int(layer), {})[what] = value
    return layers
