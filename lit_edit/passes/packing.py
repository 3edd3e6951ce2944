r"""Rows that begin alike, run as trees of tokens: what they share is computed once.

Legend: B = packs, T = positions of a pack, P = picked positions.

The rows of a scoring form a prefix tree: one template with ten subjects, one prompt with two answers, one neighbourhood prompt
in many records. A pack holds such trees side by side as one sequence. Every token knows its parent; its position is its depth,
and it sees its ancestors and itself alone, so that for a model which takes positions and mask as they are given

.. math:: h(\text{token in the pack}) = h(\text{token in its row}).

Not every family does (some count positions from the mask, bias attention by the distance in the sequence, or see a window
shorter than a row), which is why :func:`packs_exactly` tries it out. The idea is that of tree attention in speculative
decoding (SpecInfer, arXiv:2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.passes.forward import frozen, last_mlp_at, logits_at
from lit_edit.passes.trial import CANNOT_RUN, Trial, difference, rounding
from lit_edit.prompts import right_pad

NOT_FINITE = "its numbers are not finite"

_OPEN = 4
"""Packs that are filled side by side: what is too long for one goes into the next, and little room is lost."""


@dataclass
class Pack:
    """Prefix trees side by side in one sequence."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Column of the token before; a first token is its own parent."""
    paths: dict[int, list[int]] = field(default_factory=dict)
    """Columns of a row's tokens, by the row's number."""
    last: tuple[Sequence[int], list[int]] = ((), [])
    """The row added last and its columns."""

    def shared(self, row: Sequence[int]) -> int:
        """How many of a row's first tokens the row added last has as well."""
        count = 0
        for token, other in zip(row, self.last[0], strict=False):
            if token != other:
                break
            count += 1
        return count

    def add(self, number: int, row: Sequence[int], shared: int) -> None:
        """Hang a row onto the one added last, behind the tokens they share."""
        path = self.last[1][:shared]
        for token in row[shared:]:
            column = len(self.ids)
            self.parents.append(path[-1] if path else column)
            self.ids.append(token)
            path.append(column)
        self.paths[number] = path
        self.last = (row, path)


def plant(rows: Sequence[Sequence[int]], size: int) -> list[Pack]:
    """Put rows into packs, sharing beginnings.

    A row goes to that open pack in which it needs the fewest new columns; among equals to the fullest.

    Args:
        rows: token ids, none longer than ``size``, in an order in which rows that begin alike are neighbours (sorted).
        size: most columns of a pack.

    Returns:
        Packs, longest first, so that like lengths can share a pass.

    >>> [(pack.ids, pack.parents, pack.paths) for pack in plant([(7, 8, 9), (7, 8, 5), (3,)], 8)]
    [([7, 8, 9, 5, 3], [0, 0, 1, 1, 4], {0: [0, 1, 2], 1: [0, 1, 3], 2: [4]})]
    """
    closed: list[Pack] = []
    filling: list[Pack] = []
    for number, row in enumerate(rows):
        best: tuple[int, int, int] | None = None
        for index, pack in enumerate(filling):
            shared = pack.shared(row)
            left = size - len(pack.ids) - len(row) + shared
            if left >= 0 and (best is None or (-shared, left) < best[:2]):
                best = (-shared, left, index)
        if best is None:
            if len(filling) == _OPEN:
                closed.append(filling.pop(max(range(_OPEN), key=lambda index: len(filling[index].ids))))
            filling.append(Pack())
            best = (0, 0, len(filling) - 1)
        filling[best[2]].add(number, row, -best[0])
    return sorted(closed + filling, key=lambda pack: -len(pack.ids))


def pack_inputs(packs: Sequence[Pack], pad: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    r"""What a model is called with to run packs: token ids, depths as positions, ancestors as additive attention mask.

    Ancestors by squaring: with :math:`A_1 = I + \text{parent}`, :math:`A_{2n} = \min(A_n A_n, 1)`.

    Args:
        packs: any number of them.
        pad: token id behind the end of a shorter pack; such a token sees itself only.
        device: where the model is.
        dtype: of the model.

    Returns:
        ``input_ids`` and ``position_ids``, ``[B, T]``, and ``attention_mask``, ``[B, 1, T, T]``, zero or the least number.
    """
    longest = max(len(pack.ids) for pack in packs)
    ids = [pack.ids + [pad] * (longest - len(pack.ids)) for pack in packs]
    parents = [pack.parents + list(range(len(pack.ids), longest)) for pack in packs]
    parents_BT = torch.tensor(parents, device=device)
    sees_BTT = torch.eye(longest, device=device) + torch.nn.functional.one_hot(parents_BT, longest).float()
    sees_BTT.clamp_(max=1.0)
    deepest = max((len(path) for pack in packs for path in pack.paths.values()), default=1)
    for _ in range((deepest - 1).bit_length()):
        sees_BTT = (sees_BTT @ sees_BTT).clamp_(max=1.0)
    mask_BTT = torch.zeros_like(sees_BTT, dtype=dtype).masked_fill_(sees_BTT == 0, torch.finfo(dtype).min)
    return {
        "input_ids": torch.tensor(ids, device=device),
        "position_ids": sees_BTT.sum(-1).long() - 1,
        "attention_mask": mask_BTT[:, None],
    }


def packed_logits_at(anatomy: Anatomy, inputs: dict[str, Tensor], rows_P: Tensor, columns_P: Tensor) -> Tensor:
    """:func:`~lit_edit.passes.forward.logits_at` for packs, with the last block's MLP run only where it is read."""
    with last_mlp_at(anatomy, rows_P, columns_P):
        return logits_at(anatomy, inputs, rows_P, columns_P)


@torch.no_grad()
def tried_packing(anatomy: Anatomy, size: int, longest: int, pad: int) -> Trial:
    """Whether a model says in a pack what it says in rows: one full pack is run both ways.

    The pack has a row of the greatest length, branches deep and shallow, one of them far behind its parent, and a tree of its
    own at the end, so that everything that counts from the sequence instead of the tree shows.

    Args:
        anatomy: the model.
        size: columns of a pack.
        longest: tokens of the longest row that is to be packed, at most half of ``size``.
        pad: the padding token.

    Returns:
        The :func:`~lit_edit.passes.trial.difference` of the logits.
    """
    fresh = iter([(17 + 31 * number) % anatomy.vocabulary for number in range(2 * size)])

    def more(count: int) -> list[int]:
        return [next(fresh) for _ in range(count)]

    deep = more(longest)
    rest = size - longest
    part = rest // 8
    rows = [deep, deep[: longest // 2] + more(part), deep[:1] + more(4 * part), deep[:1] + more(part), more(part)]
    picks = [(number, column) for number, row in enumerate(rows) for column in {len(row) // 2, len(row) - 1}]
    device = anatomy.device
    row_P, column_P = torch.tensor(picks, device=device).T
    with frozen(anatomy.model):
        wanted = logits_at(anatomy, right_pad(rows, pad, device), row_P, column_P)
        if not bool(wanted.isfinite().all()):
            return Trial.failed(NOT_FINITE)
        try:
            (pack,) = plant(rows, size)
            columns = torch.tensor([pack.paths[number][column] for number, column in picks], device=device)
            inputs = pack_inputs([pack], pad, device, anatomy.dtype)
            found = packed_logits_at(anatomy, inputs, torch.zeros_like(columns), columns)
        except CANNOT_RUN as error:  # a family that takes no positions, or no mask of this shape
            return Trial.failed(f"it takes no tree of tokens ({type(error).__name__})")
    return Trial(difference(found, wanted), rounding(anatomy.dtype, device))


def packs_exactly(anatomy: Anatomy, size: int, longest: int, pad: int) -> bool | None:
    """Whether :func:`tried_packing` finds agreement; ``None`` if the model's numbers are not finite, which says nothing."""
    trial = tried_packing(anatomy, size, longest, pad)
    return None if trial.why_not == NOT_FINITE else trial.same
