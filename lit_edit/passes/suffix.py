"""Rows continued from cached attention keys and values: what stands before a position is run once, and never again.

Legend: R = rows, T = positions of whole rows, P = positions of the longest prefix, S = positions of the longest suffix,
D = hidden size, H = heads, W = head width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_edit.passes.forward import block_outputs, frozen, run_until, starting_after
from lit_edit.passes.layout import lay
from lit_edit.passes.trial import CANNOT_RUN, Trial
from lit_edit.prompts import right_pad, right_pad_unmasked

if TYPE_CHECKING:
    from transformers import DynamicCache

    from lit_edit.anatomy import Anatomy


@dataclass(frozen=True)
class Suffixes:
    """Rows from some position on, ready to be run through the blocks above a layer again and again."""

    ids: dict[str, Tensor]
    """What the model is called with: ``input_ids [R, S]``, ``attention_mask [R, P + S]``, ``position_ids [R, S]``."""
    hidden_RSD: Tensor
    """Output of the layer at the suffixes."""
    start_R: Tensor
    """Position in its row at which a suffix starts."""
    past: DynamicCache | None
    """Keys and values ``[R, H, P, W]`` of the prefixes in the blocks above the layer; ``None`` where nothing is cached."""
    cache_argument: str
    """See :attr:`lit_edit.anatomy.Anatomy.cache_argument`."""

    def inputs(self) -> dict[str, Any]:
        """Arguments for one forward pass; a pass appends to the cache that it is given, so each gets its own."""
        return {**self.ids, self.cache_argument: _copied(self.past)} if self.past is not None else dict(self.ids)

    def only(self, rows_R: Tensor) -> Suffixes:
        """The same without the rows outside of a mask ``[R]``."""
        past = _copied(self.past)
        layers: list[Any] = [] if past is None else past.layers  # of unions that no check of a field narrows
        for part in layers:
            part.keys, part.values = part.keys[rows_R], part.values[rows_R]
        ids = {name: value[rows_R] for name, value in self.ids.items()}
        return Suffixes(ids, self.hidden_RSD[rows_R], self.start_R[rows_R], past, self.cache_argument)


@torch.no_grad()
def suffixes(anatomy: Anatomy, rows: Sequence[Sequence[int]], starts: Sequence[int], layer: int, pad: int) -> Suffixes:
    """Run rows once, and keep what their continuation above a layer needs.

    Nothing behind a position can reach one before it, so what the blocks above ``layer`` computed for the prefixes stays right
    whatever is changed at or behind ``starts``; a prefix that several rows have is run once. Prefixes are padded on the left,
    so that distances between positions stay those of the rows (sliding windows, ALiBi); rotary and learned positions are given.
    A family for which that is not exact (:attr:`Anatomy.continues`) gets whole rows.

    Args:
        anatomy: the model, in evaluation mode.
        rows: token ids.
        starts: first position of every row's suffix.
        layer: the block above which rows are continued.
        pad: token id for padding.
    """
    laid = lay(anatomy, rows, pad)
    hidden_RTD = laid.rows(block_outputs(anatomy, laid.inputs, layer))
    if not max(starts) or not anatomy.continues or layer == len(anatomy.blocks) - 1:
        ids = right_pad_unmasked(rows, pad, anatomy.device)
        start_R = torch.zeros(len(rows), dtype=torch.long, device=anatomy.device)
        return Suffixes(ids, hidden_RTD, start_R, None, anatomy.cache_argument)
    return _cut(anatomy, rows, starts, hidden_RTD, layer, pad)


def _cut(
    anatomy: Anatomy, rows: Sequence[Sequence[int]], starts: Sequence[int], hidden_RTD: Tensor, layer: int, pad: int
) -> Suffixes:
    device = hidden_RTD.device
    start_R = torch.tensor(starts, device=device)
    longest = max(starts)
    # Column c of the left-padded prefix is position c - (P - start) of the row.
    place_RP = torch.arange(longest, device=device)[None] - (longest - start_R)[:, None]
    there_RP = place_RP >= 0
    past = _past(anatomy, rows, starts, hidden_RTD, place_RP.clamp_min(0), there_RP, layer, pad)

    tail = right_pad_unmasked([row[at:] for row, at in zip(rows, starts, strict=True)], pad, device)
    ids = {"input_ids": tail["input_ids"], "attention_mask": torch.cat([there_RP.long(), tail["attention_mask"]], 1)}
    place_RS = start_R[:, None] + torch.arange(tail["input_ids"].shape[1], device=device)[None]
    # Padding has no position of its own; any that the model knows will do.
    place_RS = place_RS.clamp_max(hidden_RTD.shape[1] - 1)
    if "position_ids" in inspect.signature(anatomy.model.forward).parameters:
        ids["position_ids"] = place_RS
    index = place_RS[..., None].expand(-1, -1, hidden_RTD.shape[-1])
    return Suffixes(ids, hidden_RTD.gather(1, index), start_R, past, anatomy.cache_argument)


def _past(
    anatomy: Anatomy,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    hidden_RTD: Tensor,
    place_RP: Tensor,
    there_RP: Tensor,
    layer: int,
    pad: int,
) -> DynamicCache:
    """Keys and values of the prefixes in the blocks above a layer, each distinct prefix run once, padded on the left."""
    from transformers import DynamicCache  # late: whoever only names an editor does not wait for it

    device = hidden_RTD.device
    distinct: dict[tuple[int, ...], int] = {}
    heads: list[int] = []  # a row that begins with the prefix
    which = []
    for index, (row, at) in enumerate(zip(rows, starts, strict=True)):
        prefix = tuple(row[:at])
        if prefix and prefix not in distinct:
            distinct[prefix] = len(distinct)
            heads.append(index)
        which.append(distinct[prefix] if prefix else 0)
    laid = lay(anatomy, list(distinct), pad)
    width = laid.line_RT.shape[1]
    # Behind the end of a prefix stands its last token again, and has to hold that token's state.
    ends = torch.tensor([len(prefix) - 1 for prefix in distinct], device=device)
    index_UT = torch.arange(width, device=device)[None].minimum(ends[:, None])
    hidden_UTD = hidden_RTD[torch.tensor(heads, device=device)[:, None], index_UT]
    past = DynamicCache()
    with starting_after(anatomy, layer, laid.spread(hidden_UTD)):
        run_until(anatomy, anatomy.blocks[-1], {**laid.inputs, anatomy.cache_argument: past})

    which_R = torch.tensor(which, device=device)[:, None]
    place_RP = place_RP.clamp_max(width - 1)
    line_RP, column_RP = laid.line_RT[which_R, place_RP], laid.column_RT[which_R, place_RP]

    def gathered(states_LHCW: Tensor) -> Tensor:
        found_RHPW = states_LHCW.transpose(1, 2)[line_RP, column_RP].transpose(1, 2)
        return found_RHPW.masked_fill(~there_RP[:, None, :, None], 0)

    layers: list[Any] = past.layers
    for part in layers:
        if part.is_initialized and part.keys.numel():
            part.keys, part.values = gathered(part.keys), gathered(part.values)
        else:  # a block up to the layer: it never runs, but models ask its length
            part.lazy_initialization(hidden_RTD.new_zeros(len(rows), 1, 0, 1), hidden_RTD.new_zeros(len(rows), 1, 0, 1))
            part.keys = part.values = hidden_RTD.new_zeros(len(rows), 1, place_RP.shape[1], 1)
    return past


def _copied(past: DynamicCache | None) -> DynamicCache | None:
    """Another cache over the same tensors: appending to it leaves the first one alone."""
    if past is None:
        return None
    other = copy.copy(past)
    other.layers = [copy.copy(part) for part in past.layers]
    return other


@torch.no_grad()
def tried_continuing(anatomy: Anatomy) -> Trial:
    """Whether a model continues rows of unequal length from a cache as if they had been run whole; found out by trying.

    Recurrent and hybrid families keep another kind of state, and some make masks or positions in ways of their own.

    Returns:
        The largest difference of a logit, relative to the largest logit.
    """
    count = len(anatomy.blocks)
    if count < 2:
        return Trial.failed("it has a single block")
    longest = min(7, anatomy.positions, anatomy.vocabulary)
    rows = [[index % anatomy.vocabulary for index in range(3, 3 + size)] for size in (longest, max(longest - 2, 2), 2)]
    starts = [len(row) - 2 for row in rows[:2]] + [0]  # an empty prefix, too
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5}.get(anatomy.dtype, 3e-2)
    with frozen(anatomy.model):
        try:
            whole = right_pad(rows, 0, anatomy.device)
            expected = anatomy.model(**whole, use_cache=False).logits.double()
            hidden = block_outputs(anatomy, whole, 0)
            cut = _cut(anatomy, rows, starts, hidden, 0, 0)
            with starting_after(anatomy, 0, cut.hidden_RSD):
                found = anatomy.model(**cut.inputs(), use_cache=False).logits.double()
        except CANNOT_RUN as error:
            return Trial.failed(f"it keeps no keys and values that it can be continued from ({type(error).__name__})")
    wanted = torch.stack([expected[row, at : at + 2] for row, at in enumerate(starts)])
    if found.shape != wanted.shape:
        return Trial.failed("it does not go on where its cache ends")
    return Trial(float((found - wanted).abs().max() / wanted.abs().max()), tolerance)


def continues_exactly(anatomy: Anatomy) -> bool:
    """Whether :func:`tried_continuing` finds agreement."""
    return tried_continuing(anatomy).same
