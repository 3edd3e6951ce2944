"""Reading a recording: files, tensors (and which of them were looked at), requests, the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.options.documents import load_json
from lit_edit.prompts import EditRows, Encoder
from lit_edit.request import EditRequest

if TYPE_CHECKING:
    from lit_edit.verify.table import Row

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """How one method's recording is replayed."""

    name: str
    files: tuple[str, ...]
    """Names of the recorded files that it covers."""
    run: Callable[[Recording], list[Row]]


class TensorFile:
    """The tensors of one safetensors file; remembers which of them were compared with something.

    Args:
        path: the file.

    Raises:
        EditError: if the file is damaged or a tensor holds NaN or Inf.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise EditError(f"{path} is damaged or no safetensors file ({type(error).__name__})") from error
        for name, value in self.tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise EditError(f"{path} is damaged: its tensor {name!r} holds NaN or Inf")
        self.compared: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, pattern: str) -> Iterable[tuple[str, re.Match[str]]]:
        """Names that match a regular expression as a whole, in order, with the match."""
        found = ((name, re.fullmatch(pattern, name)) for name in sorted(self.tensors))
        return [(name, match) for name, match in found if match is not None]

    def get(self, name: str) -> Tensor | None:
        """A tensor, ``None`` where it was not recorded."""
        return self.tensors.get(name)

    def matrix(self, name: str, rows: int | None = None, columns: int | None = None) -> Tensor:
        """A tensor that something is computed from: it must be there and have the shape said.

        Raises:
            EditError: if it is missing or has another shape.
        """
        value = self.tensors.get(name)
        if value is None:
            raise EditError(f"{self.path} is incomplete: the tensor {name!r} is missing")
        wanted = (rows, columns)
        if value.dim() != 2 or any(want is not None and want != have for want, have in zip(wanted, value.shape, strict=True)):
            asked = " x ".join("any" if want is None else str(want) for want in wanted)
            raise EditError(f"{self.path} is damaged: its tensor {name!r} has shape {tuple(value.shape)}, not {asked}")
        return value

    def left_out(self) -> dict[str, int]:
        """Kinds of tensors (numbers in names replaced by ``#``) that nothing was compared with, and how many."""
        kinds: dict[str, int] = {}
        for name in sorted(set(self.tensors) - self.compared):
            kind = re.sub(r"\d+(\.\d+)?", "#", name)
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds


@dataclass
class Recording:
    """One model's folder of a recorded set."""

    folder: Path
    _files: dict[str, TensorFile] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the model in the table."""
        return self.folder.name

    @cached_property
    def meta(self) -> dict[str, Any]:
        """``meta.json``."""
        return read_json(self.folder / "meta.json", dict)

    @cached_property
    def records(self) -> dict[str, Any]:
        """``records.json`` of the set."""
        return read_json(self.folder.parent / "records.json", dict)

    def tensors(self, name: str) -> TensorFile | None:
        """A recorded file by its stem (``"MEMIT"``), ``None`` where it was not recorded."""
        path = self.folder / f"{name}.safetensors"
        if name not in self._files and path.exists():
            self._files[name] = TensorFile(path)
        return self._files.get(name)

    def json(self, name: str) -> dict[str, Any] | None:
        """A recorded JSON file, ``None`` where it was not recorded."""
        path = self.folder / name
        return read_json(path, dict) if path.exists() else None

    def options(self, method: str) -> dict[str, Any]:
        """Hyper-parameters of a method.

        Raises:
            EditError: if ``meta.json`` does not give them.
        """
        return self.want(f"hyper_parameters/{method}", dict)

    def want(self, path: str, kind: type[T]) -> T:
        """An entry of ``meta.json`` by its path, with ``/`` between keys.

        Raises:
            EditError: if it is missing or of another type.
        """
        value: Any = self.meta
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, Mapping) else None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            raise EditError(f"{self.folder / 'meta.json'} is incomplete: it needs {path} ({kind.__name__})")
        return value

    def difference(self, method: str, quantity: str) -> float | None:
        """The rounding difference that ``meta.json`` observed for a quantity, ``None`` if it gives none."""
        found = self.meta.get("tolerances", {}).get(method, {}).get(quantity)
        # Of an exact zero, five times nothing would demand equal bits from other hardware: that is no tolerance.
        return float(found) if isinstance(found, int | float) and math.isfinite(found) and found > 0 else None

    # ---------------------------------------------------------------- the model and what it is fed

    @cached_property
    def model(self) -> Any:
        """The recorded model in float32, evaluation mode, with gradients switched off."""
        from transformers import AutoModelForCausalLM

        folder = self.folder / "model"
        try:
            # Eager attention is what the recordings were made with.
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        except Exception as error:  # transformers, safetensors and json each have their own
            raise EditError(f"the model in {folder} cannot be loaded ({type(error).__name__})") from error
        return model.eval().requires_grad_(False)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the model keeps what is edited."""
        return Anatomy.of(self.model)

    @cached_property
    def encoder(self) -> Encoder:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        folder = self.folder / "model"
        try:
            return Encoder(AutoTokenizer.from_pretrained(folder))
        except EditError:
            raise
        except Exception as error:
            raise EditError(f"the tokenizer in {folder} cannot be loaded ({type(error).__name__})") from error

    @cached_property
    def original(self) -> dict[int, Tensor]:
        """Edited weights ``[d_out, d_in]`` as they were loaded."""
        return {layer: self.anatomy.weight(layer).clone() for layer in range(len(self.anatomy.blocks))}

    def restore(self) -> None:
        """Put the original weights back into the model."""
        for layer, weight in self.original.items():
            self.anatomy.weight(layer).copy_(weight)

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """Context templates besides the bare prompt.

        Raises:
            EditError: if they come in another grouping than the bare prompt and one group of contexts.
        """
        groups = self.meta.get("context_templates", {}).get("memit_family (nested)")
        if groups is None:
            return tuple(self.records.get("templates", ()))
        if len(groups) > 2 or groups[:1] != [["{}"]]:
            raise EditError(f"{self.folder / 'meta.json'} groups its context templates otherwise than [['{{}}'], [contexts]]")
        return tuple(template for group in groups[1:] for template in group)

    @cached_property
    def batches(self) -> list[list[EditRows]]:
        """Token rows of the requests of every recorded batch.

        Raises:
            EditError: if a batch names a record that is not there.
        """
        by_id: dict[Any, list[dict[str, Any]]] = {}
        for record in [*self.records.get("records", []), *self.records.get("pair", [])]:
            by_id.setdefault(record["case_id"], []).append(record)
        batches = []
        for ids in self.want("batches", list):
            rows = []
            for case in ids:
                if not by_id.get(case):
                    raise EditError(f"{self.folder / 'meta.json'} names case {case}, which records.json does not hold")
                # An id that is recorded twice means two records: they are used in file order.
                same = by_id[case]
                record = same.pop(0) if len(same) > 1 else same[0]
                rows.append(self.encoder.rows(_request(record), self.contexts))
            batches.append(rows)
        return batches


def read_json(path: Path, kind: type[T]) -> T:
    """The content of a JSON file.

    Raises:
        EditError: if it is missing, damaged, or not of the type wanted.
    """
    try:
        value = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditError(f"{path} is missing: {path.parent} is no recording") from None
    except (OSError, ValueError) as error:
        raise EditError(f"{path} is damaged or cannot be read ({type(error).__name__})") from error
    if not isinstance(value, kind):
        raise EditError(f"{path} is damaged: it holds a {type(value).__name__} instead of a {kind.__name__}")
    return value


def find(folder: Path) -> list[Recording]:
    """The recordings of a set folder, or the one that ``folder`` is.

    Raises:
        EditError: if it is neither.
    """
    if not folder.is_dir():
        raise EditError(f"{folder} is no folder; name a recorded set (with records.json) or one model's folder in it")
    alone = (folder / "meta.json").exists()
    found = [folder] if alone else sorted(path.parent for path in folder.glob("*/meta.json"))
    if not found or not (found[0].parent / "records.json").exists():
        raise EditError(
            f"{folder} is no recording: it needs records.json and model folders with meta.json, or to be one of these folders"
        )
    for path in found:
        if not (path / "model" / "config.json").exists():
            raise EditError(f"{path} is no recording: its model/ folder is missing")
    return [Recording(path) for path in found]


def _request(record: dict[str, Any]) -> EditRequest:
    try:
        wanted = record["requested_rewrite"]
        return EditRequest(
            wanted["prompt"], wanted["subject"], wanted["target_new"]["str"].strip(), case_id=str(record["case_id"])
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EditError(f"records.json is damaged: a record lacks {error}") from error
