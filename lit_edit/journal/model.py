"""The model of a run, as its configuration names it, and the checkpoints that the run left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.models.identity import load_pretrained
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Named:
    """Which model a run edits, as its configuration says."""

    pretrained: str
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    trust_remote_code: bool

    @classmethod
    def of(cls, run: Path) -> Named:
        """Read ``config.yaml`` of a run folder.

        Raises:
            EditError: if it names no model, or one that no run can have.
        """
        model = RunFolder(run).config.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("pretrained"), str):
            raise EditError(f"{run / 'config.yaml'} names no model (model.pretrained)")
        dtype, revision = model.get("dtype", "float32"), model.get("revision")
        if dtype not in ("float32", "bfloat16", "float16") or not isinstance(revision, str | None):
            raise EditError(f"{run / 'config.yaml'} asks for dtype {dtype!r} and revision {revision!r}, which no run can have")
        return cls(model["pretrained"], revision, dtype, model.get("trust_remote_code") is True)


@dataclass(frozen=True)
class Unedited:
    """The model of a run before its first batch."""

    net: nn.Module
    tokenizer: Any
    anatomy: Anatomy
    original: dict[int, Tensor]
    """Float32 weights of the edited layers, ``[d_out, d_in]``."""

    @classmethod
    def of(cls, run: Path, layers: list[int]) -> Unedited:
        """Load it.

        Args:
            run: the run folder; ``config.yaml`` in it names the model.
            layers: the edited blocks.

        Raises:
            EditError: if the configuration names no model that can be loaded, or one without these blocks.
        """
        named = Named.of(run)
        net, tokenizer = load_pretrained(named.pretrained, named.revision, getattr(torch, named.dtype), named.trust_remote_code)
        net.requires_grad_(False)
        anatomy = Anatomy.of(net)
        known = anatomy.check_layers(layers)
        return cls(net, tokenizer, anatomy, {layer: anatomy.weight(layer).float().clone().contiguous() for layer in known})

    def save(self, folder: Path, weights: dict[int, Tensor]) -> None:
        """Write a folder that ``from_pretrained`` loads: this model with other weights in the edited layers."""
        with torch.no_grad():
            for layer, weight in weights.items():
                self.anatomy.weight(layer).copy_(weight)
        net: Any = self.net
        net.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Kept:
    """One checkpoint of a run."""

    path: Path
    batches: int
    masters: dict[str, Tensor]
    """By the layer's number."""


def checkpoints(run: Path) -> tuple[list[Kept], list[str]]:
    """The checkpoints in a run folder that are whole, oldest state first, and a sentence for each that is not."""
    found, damaged = [], []
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        try:
            state = SafetensorsCheckpointIO().load_checkpoint(path)
            masters = {
                name.removeprefix("masters.layer_"): value
                for name, value in state["state_dict"].items()
                if name.startswith("masters.layer_")
            }
            found.append(Kept(path, int(state["lit_edit"]["batches"]), masters))
        except (EditError, KeyError, TypeError, ValueError) as error:
            damaged.append(str(error) if isinstance(error, EditError) else f"{path} is no checkpoint of a run")
    return sorted(found, key=lambda kept: (kept.batches, kept.path.name)), damaged
