"""An edit as a file of its own, put on a model and taken off again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lit_edit.errors import EditError
from lit_edit.export.changes import Change
from lit_edit.export.reading import LayerEntry, read_delta
from lit_edit.journal.files import hashes
from lit_edit.models.decoder import is_transposed

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Replaced:
    """What one layer of a model held before."""

    weight: Tensor
    """As the model stores it, in the model's dtype."""
    applied: str
    """Hash of what is there instead."""


class EditDelta:
    """The edit of a run, to be put on the model that it was made for.

    .. code-block:: python

        edit = lit_edit.EditDelta.load("FOLDER")
        edit.apply(model)
        edit.unapply(model)

    The edited weights have the bits of those that were exported, in float32, and are cast to the model's dtype where that is
    another one, as the run itself showed them. Every layer is compared with its hash before and after.

    Args:
        folder: what :func:`lit_edit.export_model` wrote with ``format="delta"``; for messages.
        about: content of its ``edit_config.json``.
        layers: entries of its layers, by number.
        changes: the tensors, by layer.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], layers: Mapping[int, LayerEntry], changes: Mapping[int, Change]
    ) -> None:
        self.folder, self.about, self.layers, self.changes = folder, about, dict(layers), dict(changes)
        self._replaced: WeakKeyDictionary[nn.Module, dict[int, _Replaced]] = WeakKeyDictionary()

    @classmethod
    def load(cls, folder: str | Path) -> EditDelta:
        """Read and check a folder; nothing in it is run, unpickled or followed.

        Args:
            folder: a folder on this machine.

        Raises:
            EditError: if it is none, has another format number, or a file of it is missing, too large, altered or of another
                form.
        """
        return cls(Path(folder), *read_delta(Path(folder)))

    def edited(self, layer: int, weight: Tensor) -> Tensor:
        """The edited weight of a layer, ``[d_out, d_in]`` float32, bit for bit.

        Args:
            layer: index of the block.
            weight: the unedited weight, ``[d_out, d_in]`` float32.

        Raises:
            EditError: if the weight is not the one that the edit was made for.
        """
        entry, now = self.layers[layer], weight.detach().float().contiguous()
        if tuple(now.shape) != entry.shape:
            raise EditError(
                f"{entry.weight} has the shape {list(now.shape)}, the edit in {self.folder} is for {list(entry.shape)}"
            )
        if _hash(now) != entry.base:
            raise EditError(self._other_base(entry, _hash(now), _hash(weight)))
        found = self.changes[layer].apply(now)
        if _hash(found) != entry.edited:
            raise EditError(
                f"the edit in {self.folder} does not give the weights whose hash it names for layer {layer}; it is damaged"
            )
        return found

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Edit a model in place: all layers, or none.

        What is replaced is kept, on the device of the model, until :meth:`unapply` or the end of this object.

        Args:
            model: a Hugging Face causal language model with the weights that the edit was made for, in the dtype of the run.

        Raises:
            EditError: if it is edited already, or another model or revision.
        """
        if model in self._replaced:
            raise EditError(f"the edit in {self.folder} is applied to this model already; unapply it first")
        places = {layer: self._place(model, entry) for layer, entry in self.layers.items()}
        found = {layer: self.edited(layer, _view(module)) for layer, module in places.items()}
        kept = {}
        for layer, module in places.items():
            before = _weight(module).data.clone()
            _view(module).copy_(found[layer])
            kept[layer] = _Replaced(before, _hash(_weight(module)))
        self._replaced[model] = kept

    @torch.no_grad()
    def unapply(self, model: nn.Module) -> None:
        """Put back, byte for byte, what :meth:`apply` has replaced.

        Args:
            model: the object that was given to :meth:`apply`.

        Raises:
            EditError: if this edit was not applied to it, or its weights were changed since.
        """
        kept = self._replaced.get(model)
        if kept is None:
            raise EditError(
                f"the edit in {self.folder} was not applied to this model by this object; load the base model again"
            )
        places = {layer: self._place(model, self.layers[layer]) for layer in kept}
        for layer, module in places.items():
            if _hash(_weight(module)) != kept[layer].applied:
                raise EditError(
                    f"{self.layers[layer].weight} was changed since the edit was applied; take later edits off first, or load "
                    "the base model again"
                )
        for layer, module in places.items():
            _weight(module).data.copy_(kept[layer].weight)
        del self._replaced[model]

    def _place(self, model: nn.Module, entry: LayerEntry) -> nn.Module:
        """The module that holds a weight."""
        try:
            module = model.get_submodule(entry.weight.rpartition(".")[0])
            weight = _weight(module)
        except (AttributeError, TypeError):
            raise EditError(
                f"{type(model).__name__} has no weight {entry.weight}, so the edit in {self.folder} is for another model: "
                f"{self._base()}"
            ) from None
        if weight.dtype not in _DTYPES or weight.is_meta or is_transposed(module) != entry.transposed:
            raise EditError(
                f"{entry.weight} belongs to a {type(module).__name__}, {str(weight.dtype).removeprefix('torch.')} on "
                f"{weight.device}, and the edit in {self.folder} is for {self._base()}, not quantised and all loaded"
            )
        return module

    def _base(self) -> str:
        revision = self.about.get("revision")
        return f"{self.about['base_model_name_or_path']}" + (f" at revision {revision}" if revision else "")

    def _other_base(self, entry: LayerEntry, found: str, stored: str) -> str:
        if found == entry.edited or stored == entry.shown:
            return (
                f"{entry.weight} holds this edit already; apply the edit in {self.folder} to the unedited model {self._base()}"
            )
        return (
            f"{entry.weight} is not the weight that the edit in {self.folder} was made for (SHA-256 {found[:12]} instead of "
            f"{entry.base[:12]}): it is for {self._base()}, loaded in {self.about['dtype']} and not edited"
        )


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError
    return weight


def _view(module: nn.Module) -> Tensor:
    """``[d_out, d_in]``, whichever way the module stores it; writing into it writes into the model."""
    weight = _weight(module).data
    return weight.T if is_transposed(module) else weight


def _hash(weight: Tensor) -> str:
    return hashes({0: weight})["0"]
