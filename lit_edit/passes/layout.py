"""Rows laid out for one forward pass: side by side, or in packs where beginnings are shared.

Legend: R = rows, T = positions of the longest row, L = lines of the pass, C = columns of a line, D = any last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import PACK, Anatomy
from lit_edit.passes.packing import pack_inputs, plant
from lit_edit.prompts import right_pad_unmasked


@dataclass(frozen=True)
class Layout:
    """What a model is called with, and where in it the tokens of rows are found."""

    inputs: dict[str, Tensor]
    """``input_ids`` ``[L, C]`` and what goes with them."""
    line_RT: Tensor
    column_RT: Tensor
    """Where each token of each row stands; behind the end of a row its last token is named again."""

    def rows(self, states_LCD: Tensor) -> Tensor:
        """States of a pass in the order of the rows, ``[R, T, D]``; what stands behind the end of a row means nothing."""
        return states_LCD[self.line_RT, self.column_RT]

    def spread(self, states_RTD: Tensor) -> Tensor:
        """The other way round, ``[L, C, D]``; 0 where no row has a token."""
        found = states_RTD.new_zeros(*self.inputs["input_ids"].shape, states_RTD.shape[-1])
        found[self.line_RT, self.column_RT] = states_RTD  # tokens that rows share hold one and the same
        return found


def lay(anatomy: Anatomy, rows: Sequence[Sequence[int]], pad: int) -> Layout:
    """Lay rows out in packs where the model takes packs and a tenth of the tokens or more is saved, else side by side.

    Args:
        anatomy: the model.
        rows: token ids, at least one to a row.
        pad: token id for padding.
    """
    device = anatomy.device
    longest = max(len(row) for row in rows)
    size = min(PACK, anatomy.positions)
    places: list[tuple[int, Sequence[int]]] = [(line, range(len(row))) for line, row in enumerate(rows)]
    inputs = None
    if anatomy.packs and longest <= size // 2:
        order = sorted(range(len(rows)), key=lambda at: tuple(rows[at]))
        packs = plant([rows[at] for at in order], size)
        if len(packs) * max(len(pack.ids) for pack in packs) <= 0.9 * len(rows) * longest:
            inputs = pack_inputs(packs, pad, device, anatomy.dtype)
            for line, pack in enumerate(packs):
                for number, path in pack.paths.items():
                    places[order[number]] = (line, path)
    if inputs is None:
        inputs = right_pad_unmasked(rows, pad, device)
    columns = [[*path, *([path[-1]] * (longest - len(path)))] for _, path in places]
    line_R = torch.tensor([line for line, _ in places], device=device)
    return Layout(inputs, line_R[:, None].expand(-1, longest), torch.tensor(columns, device=device))
