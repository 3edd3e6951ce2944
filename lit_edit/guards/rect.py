"""RECT: write only the entries of a change that are large relative to the weight."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard


class RECT(Guard):
    r"""Keep the entries of a change with the largest relative size, and zero the others.

    .. math:: \Delta'_{ij} = \Delta_{ij} \,\big[\, s_{ij} \text{ among the largest}\,\big], \qquad
        s_{ij} = \left| \frac{\Delta_{ij}}{W_{ij} + \epsilon} \right|

    with ``W`` ``[d_out, d_in]`` the weight before this change. The result has no thin form: put a guard that needs low rank
    before it. Entries where :math:`W_{ij} = 0` have the largest :math:`s` there is (with an ``epsilon``: almost) and are kept.
    Keeping the largest entries is no projection: a second application zeroes as large a share of all entries, which are the
    ones that are zero already.

    Source: arXiv 2401.04700. Two releases exist, and their options are:

    * the authors' code, ``RECT()``: zeroes the smallest 80 % of each change of one fact, no epsilon. It is switched off in
      the code as released, and its helper returns nothing;
    * AlphaEdit's ``MEMIT_rect``, ``RECT(keep=0.4, defer=True, epsilon=1e-8, rule="threshold")``: it cuts only what is
      written at last, so later layers of a batch read a model that has the uncut change. The epsilon is added to the signed
      weight, which moves entries near ``-epsilon`` away from where they belong.

    Args:
        keep: share of the entries to keep, in (0, 1); 0.2 in the paper.
        defer: act once the whole batch is solved, see :attr:`Guard.deferred`.
        epsilon: added to the signed weight before dividing; at least 0.
        rule: ``count`` zeroes exactly the ``floor((1 - keep) d_out d_in)`` smallest; of equal ones those of lower index
            (row by row) go first, where the authors' ``argpartition`` leaves it open. ``threshold`` keeps everything that is
            not smaller than the entry of that rank: one entry more, and all that tie with it.

    Raises:
        EditError: if ``keep`` is outside (0, 1), ``epsilon`` is negative, or ``rule`` is none of those named.
    """

    def __init__(
        self,
        keep: float = 0.2,
        defer: bool = False,
        epsilon: float = 0.0,
        rule: Literal["count", "threshold"] = "count",
    ) -> None:
        super().__init__()
        if not 0 < keep < 1:
            raise EditError(f"RECT's keep is {keep:g}; the share of entries to write must lie in (0, 1)")
        if not 0 <= epsilon < math.inf:
            raise EditError(f"RECT's epsilon is {epsilon:g}; it must be 0 or a small positive number")
        if rule not in ("count", "threshold"):
            raise EditError(f"RECT's rule is {rule!r}; it must be count or threshold")
        self.keep, self.epsilon, self.rule = keep, epsilon, rule
        self.deferred = defer

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`; always dense."""
        full = delta.dense()
        return Delta.from_dense(torch.where(self.kept(full, weight), full, torch.zeros_like(full)))

    def kept(self, delta_OI: Tensor, weight_OI: Tensor) -> Tensor:
        """Which entries are written, ``[d_out, d_in]`` bool.

        Args:
            delta_OI: the change, dense.
            weight_OI: the weight before it.
        """
        # Nothing over nothing (NaN) counts as large, as it does where the releases sort it.
        size = (delta_OI / (weight_OI + self.epsilon)).abs().nan_to_num(nan=math.inf, posinf=math.inf).flatten()
        # Through the decimal that was written: 1 - 0.9 is a little less than 0.1 in binary, and floor() would see it.
        dropped = math.floor(size.numel() * (1 - Fraction(str(self.keep))))
        if dropped == 0:
            return torch.ones_like(delta_OI, dtype=torch.bool)
        # The entry of rank `dropped` (from below, counted from 1), as the smallest of the largest: fewer to select.
        limit = size.topk(size.numel() - dropped + 1, sorted=False).values.min()
        keep = size >= limit
        if self.rule == "count":
            # Everything below the limit is gone; entries equal to it go until the count is right.
            missing = dropped - (size.numel() - int(keep.sum()))
            keep[(size == limit).nonzero().flatten()[:missing]] = False
        return keep.view_as(delta_OI)
