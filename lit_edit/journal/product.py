r"""A product of two thin factors with the same bits on every machine.

Legend: O = d_out, I = d_in, R = rank.

How a matrix product is rounded depends on the library, the processor and the number of threads: each adds the terms in
another order. Sums of whole numbers below 2^53 are exact in float64, whatever the order. Factors are therefore kept as whole
numbers times powers of two, one power for each row of the left and each column of the right factor:

.. math:: L_{ok} = 2^{e_o} (a_{ok} + 2^{-8} a'_{ok}), \qquad R_{ki} = 2^{f_i} (b_{ki} + 2^{-8} b'_{ki}),
    \qquad |a|, |b| \le 2^{22},\; -128 \le a', b' \le 127

.. math:: \Delta_{oi} = 2^{e_o + f_i} \sum_k \big( a_{ok} b_{ki} + 2^{-8} (a_{ok} b'_{ki} + a'_{ok} b_{ki}) \big)

Both sums are exact for up to 512 terms; what is rounded is element by element, and IEEE 754 leaves no choice there. Splitting
a product so that its parts are exact is due to Ozaki et al. (Numerical Algorithms 59, 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.delta import Delta

_HIGH = 22
_LOW = 8
_TERMS = 2 ** (53 - 2 * _HIGH)
_AT_ONCE = 2**22
"""Numbers of a block of rows, float64: 32 MiB a temporary."""
EXPONENTS = (-320, 320)
"""Powers of two of a row or column; far beyond what weights need, and far from the ends of float64."""


@dataclass(frozen=True)
class Part:
    """One factor, its rows scaled by powers of two; the right factor is kept transposed in meaning but not in shape.

    Five bytes a number, to ``2^-29`` of the largest number of its row (column).
    """

    high: Tensor  # float32, whole numbers
    low: Tensor  # int8
    exponent: Tensor  # [O] or [I] int16

    @classmethod
    def of(cls, factor: Tensor, dim: int) -> Part:
        """A finite factor in parts.

        Args:
            factor: ``[d_out, r]`` or ``[r, d_in]``, float64.
            dim: the dimension along which the terms of the product lie: 1 of the left factor, 0 of the right one.
        """
        largest = factor.abs().amax(dim) if factor.shape[dim] else factor.new_zeros(factor.shape[1 - dim])
        exponent = (torch.frexp(largest).exponent.long() - _HIGH).clamp(*EXPONENTS)
        whole = factor * _power(-exponent).unsqueeze(dim)
        high = whole.round()
        low = ((whole - high) * 2**_LOW).round().clamp(-128, 127)
        return cls(high.float(), low.to(torch.int8), exponent.to(torch.int16))


def split(delta: Delta) -> tuple[Part, Part]:
    """The factors of a finite change in parts that :func:`product` multiplies; close to it, not equal.

    Args:
        delta: with thin factors.
    """
    left, right = (factor.detach().double() for factor in delta.factors)
    if right.shape[0]:
        # Terms of different size are brought to one scale first; powers of two cost no bits.
        shift = torch.frexp(right.abs().amax(1)).exponent.long().clamp(*EXPONENTS)
        left, right = left * _power(shift), right * _power(-shift).unsqueeze(1)
    return Part.of(left, 1), Part.of(right, 0)


def product(left: Part, right: Part) -> Tensor:
    """The change ``[d_out, d_in]``, float32: the same bits on every machine, also with other numbers of threads."""
    rows, columns = left.high.shape[0], right.high.shape[1]
    found = torch.empty(rows, columns, dtype=torch.float32, device=left.high.device)
    step = max(1, _AT_ONCE // max(columns, 1))
    scale_I = _power(right.exponent.long())
    for at in range(0, rows, step):
        block = slice(at, at + step)
        total = torch.zeros(left.high[block].shape[0], columns, dtype=torch.float64, device=left.high.device)
        for k in range(0, right.high.shape[0], _TERMS):
            terms = slice(k, k + _TERMS)
            a, a_low = left.high[block, terms].double(), left.low[block, terms].double()
            b, b_low = right.high[terms].double(), right.low[terms].double()
            # One after the other, and no fused operations: every step is rounded the same way everywhere.
            rest = torch.cat([a, a_low], dim=1) @ torch.cat([b_low, b])
            total += a @ b
            total += rest * 2.0**-_LOW
        total *= _power(left.exponent[block].long()).unsqueeze(1)
        total *= scale_I
        found[block] = total.float()
    return found


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` in float64, put together from its bits: no library's ``pow`` has a say."""
    return ((exponent + 1023) << 52).view(torch.float64)
