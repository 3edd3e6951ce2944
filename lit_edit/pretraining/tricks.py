"""What makes a small model store facts where large ones do; nothing of it is part of the trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.pretraining.measures import blocks
from lit_edit.pretraining.rows import masks


@contextmanager
def tricks(
    net: nn.Module, batch: dict[str, Tensor], written: Sequence[int], drop: float, draws: torch.Generator
) -> Iterator[dict[int, Tensor]]:
    """Hooks for one forward pass: restricted attention (:func:`lit_edit.pretraining.rows.masks`) and dropped writers.

    Args:
        net: the model.
        batch: what the pass reads, see :func:`lit_edit.pretraining.rows.pack`.
        written: layers whose MLPs are to store the facts; attention to names is wider behind the last of them.
        drop: share of the mentions at which one of the ``written`` layers, drawn at random, writes nothing. No single
            layer can then hold the facts alone, so that several layers share an edit.
        draws: draws them, on the CPU.

    Yields:
        A dictionary that the pass fills: layer -> its MLP's output ``[B, T, width]``, before it was dropped.
    """
    early, late = masks(batch)
    outputs: dict[int, Tensor] = {}
    silent = silent_layers(batch["mention"], written, drop, draws)

    def mask_for(layer: int) -> Any:
        chosen = early if layer <= max(written) else late

        def hook(block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
            given = signature(block.forward).bind(*args, **kwargs)  # families pass the mask by place or by name
            given.arguments["attention_mask"] = chosen
            return given.args, given.kwargs

        return hook

    def writer(layer: int) -> Any:
        def hook(_m: nn.Module, _args: Any, out: Tensor) -> Tensor:
            outputs[layer] = out
            return out * (silent != layer)[:, :, None]

        return hook

    with ExitStack() as stack:
        block: Any
        for number, block in enumerate(blocks(net)):
            stack.enter_context(block.register_forward_pre_hook(mask_for(number), with_kwargs=True))
            if number in written:
                stack.enter_context(block.mlp.register_forward_hook(writer(number)))
        yield outputs


def silent_layers(mention: Tensor, written: Sequence[int], drop: float, draws: torch.Generator) -> Tensor:
    """Which written layer is silent at each token of a name, ``[B, T]``; -1 for none; one draw per mention."""
    shape = mention.shape[0], int(mention.max()) + 1
    layers = torch.tensor(list(written))
    drawn = layers[torch.randint(len(layers), shape, generator=draws)]
    drawn = torch.where(torch.rand(shape, generator=draws) < drop, drawn, -1)
    drawn[:, 0] = -1
    return drawn.to(mention.device).gather(1, mention)
