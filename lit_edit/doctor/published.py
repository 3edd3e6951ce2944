"""Layers that were chosen in published work, by the shape of the model they were chosen for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published choice of layers."""

    model: str
    kind: str
    """``model_type`` of its configuration."""
    blocks: int
    d_model: int
    d_inner: int
    layers: tuple[int, ...]
    source: str


_CHOICES = (
    Published("GPT-2 XL", "gpt2", 48, 1600, 6400, (13, 14, 15, 16, 17), "MEMIT, AlphaEdit"),
    Published("GPT-J 6B", "gptj", 28, 4096, 16384, (3, 4, 5, 6, 7, 8), "MEMIT, AlphaEdit"),
    Published("Llama 3 8B", "llama", 32, 4096, 14336, (4, 5, 6, 7, 8), "AlphaEdit"),
    Published("Qwen 2.5 7B", "qwen2", 28, 3584, 18944, (4, 5, 6, 7, 8), "EasyEdit"),
)


def published(kind: str, blocks: int, d_model: int, d_inner: int) -> Published | None:
    """The choice published for a model of this shape, ``None`` where there is none.

    >>> published("gpt2", 48, 1600, 6400).layers
    (13, 14, 15, 16, 17)
    """
    shape = (kind, blocks, d_model, d_inner)
    return next((one for one in _CHOICES if (one.kind, one.blocks, one.d_model, one.d_inner) == shape), None)
