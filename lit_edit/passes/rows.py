"""Forward passes over many rows: in packs where beginnings are shared, else in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import PACK, Anatomy
from lit_edit.passes.packing import Pack, pack_inputs, plant
from lit_edit.prompts import right_pad

Row = tuple[int, ...]
"""Token ids."""

_WORTH = 256
"""Tokens from which a forward pass is no faster per token for being larger, so that padding is pure loss."""

_PASS = 1024
"""Tokens of packs in a forward pass on a CPU, enough for its matrix products; larger ones only leave the cache."""


@dataclass(frozen=True)
class Pass:
    """Rows of a forward pass and where in it they are found: ``{row: (line, columns of its tokens)}``."""

    where: Mapping[int, tuple[int, Sequence[int]]]
    packs: Sequence[Pack] = ()
    """Empty where the rows stand side by side, in the order of ``where``."""

    @classmethod
    def packed(cls, rows: Sequence[int], packs: Sequence[Pack]) -> Pass:
        """Rows in packs, which know them by their places in ``rows``."""
        paths = [(line, pack.paths) for line, pack in enumerate(packs)]
        return cls({rows[at]: (line, path) for line, found in paths for at, path in found.items()}, packs)

    @classmethod
    def padded(cls, rows: Sequence[int], fed: Sequence[Row]) -> Pass:
        """Rows side by side."""
        return cls({at: (line, range(len(fed[at]))) for line, at in enumerate(rows)})

    def inputs(self, fed: Sequence[Row], pad: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the model is called with."""
        if self.packs:
            return pack_inputs(self.packs, pad, device, dtype)
        return right_pad([fed[at] for at in self.where], pad, device)

    def of(self, some: Sequence[int], fed: Sequence[Row]) -> Pass:
        """A pass over some of its rows, in packs no longer than its own if it has any."""
        if not self.packs:
            return Pass.padded(some, fed)
        order = sorted(some, key=lambda at: fed[at])
        return Pass.packed(order, plant([fed[at] for at in order], max(len(pack.ids) for pack in self.packs)))


def passes(anatomy: Anatomy, fed: Sequence[Row], tokens_at_once: int) -> Iterator[Pass]:
    """All forward passes over distinct rows.

    Args:
        anatomy: the model.
        fed: the rows.
        tokens_at_once: padded tokens per pass.
    """
    size = min(PACK, tokens_at_once, anatomy.positions)
    left = sorted(range(len(fed)), key=lambda at: len(fed[at]))
    batches = _batches([at for at in left if len(fed[at]) <= size // 2], fed, tokens_at_once)
    short = sorted((at for batch in batches for at in batch), key=lambda at: fed[at])
    packs = plant([fed[at] for at in short], size)
    packed = sum(len(pack.ids) for pack in packs)
    if sum(len(batch) * len(fed[batch[-1]]) for batch in batches) - packed >= size and anatomy.packs:
        at_once = max(1, (min(tokens_at_once, _PASS) if anatomy.device.type == "cpu" else tokens_at_once) // size)
        for start in range(0, len(packs), at_once):
            yield Pass.packed(short, packs[start : start + at_once])
        left = [at for at in left if len(fed[at]) > size // 2]
    for batch in _batches(left, fed, tokens_at_once):
        yield Pass.padded(batch, fed)


def _batches(order: list[int], rows: Sequence[Row], tokens_at_once: int) -> list[list[int]]:
    """Rows in batches, given in ascending length: under the budget, and of like length where a batch is worth a pass."""
    batches: list[list[int]] = []
    shortest = 0
    for index in order:  # the newest row is the longest of its batch
        size = len(rows[index])
        held = len(batches[-1]) if batches else 0
        padded = size * (held + 1)
        if not batches or padded > tokens_at_once or (held * shortest >= _WORTH and size > 1.15 * shortest):
            batches.append([])
            shortest = size
        batches[-1].append(index)
    return batches
