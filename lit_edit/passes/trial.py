"""Whether two ways to compute one thing agree: asked of every model before the faster way is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""A float64 model may have its attention in float32; bfloat16 under a mask is 3.3e-2 off on CPUs with torch 2.6 to 2.8."""

_ROUNDING_TF32 = 5e-3
"""For float32 on a GPU, whose products may be rounded to TF32."""

CANNOT_RUN = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError, NotImplementedError)
"""What a model raises that takes no positions, no mask of some shape, or no cache."""


@dataclass(frozen=True)
class Trial:
    """What came of computing one thing in two ways."""

    difference: float
    """How far apart they are; NaN where that could not be found out."""
    allowed: float
    """Up to where a difference is rounding."""
    why_not: str = ""
    """Why one of the ways could not be gone, where that is so."""

    @property
    def same(self) -> bool:
        """Whether they agree; what could not be found out is no agreement."""
        return self.difference <= self.allowed

    @classmethod
    def failed(cls, why_not: str) -> Trial:
        """One that could not be made."""
        return cls(math.nan, 0.0, why_not)


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Up to where a :func:`difference` of logits is rounding, in a model of that dtype."""
    if dtype == torch.float32 and device.type == "cuda":
        return _ROUNDING_TF32
    return _ROUNDING.get(dtype, 0.0)


def difference(found_PV: Tensor, wanted_PV: Tensor) -> float:
    r"""How far logits are apart: the largest root mean square over positions, relative to the spread of those wanted.

    .. math:: \max_p \sqrt{\tfrac1V \sum_v (f_{pv} - w_{pv})^2} \Big/ \sqrt{\tfrac1{PV} \sum_{pv} (w_{pv} - \bar w_p)^2}

    Args:
        found_PV: ``[positions, vocabulary]``.
        wanted_PV: the same positions, computed the other way.

    Returns:
        The ratio; NaN where numbers are not finite.
    """
    found, wanted = found_PV.double(), wanted_PV.double()
    spread = (wanted - wanted.mean(-1, keepdim=True)).square().mean().sqrt()
    apart = (found - wanted).square().mean(-1).max().sqrt()
    return float(apart / spread) if float(apart) else 0.0
