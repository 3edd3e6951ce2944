r"""A product of two thin factors with the same bits on every machine.

Legend: O = d_out, I = d_in, R = rank.

How a matrix product is rounded depends on the library, the processor and the number of threads: each adds the terms in
another order. Sums of whole numbers below 2^53 are exact in float64, whatever the order. Factors are therefore kept as whole
numbers of 38 bits times powers of two, one power for each row of the left and each column of the right factor, and multiplied
in two parts of 22 and 16 bits (the exponent that is stored is that of 30 of the bits, :math:`e - 8`):

.. math:: L_{ok} = 2^{e_o - 16} (2^{16} a_{ok} + a'_{ok}), \qquad R_{ki} = 2^{f_i - 16} (2^{16} b_{ki} + b'_{ki}),
    \qquad |a|, |b| \le 2^{22},\; |a'|, |b'| \le 2^{15}

.. math:: \Delta_{oi} = 2^{e_o + f_i} \sum_k \big( a_{ok} b_{ki} + 2^{-16} (a_{ok} b'_{ki} + a'_{ok} b_{ki}) \big)

Both sums are exact for up to 512 terms; what is rounded is element by element, and IEEE 754 leaves no choice there. What is
left out, :math:`2^{-32} a' b'`, is less than :math:`2^{-34}` of the largest term. Splitting a product so that its parts are
exact is due to Ozaki et al. (Numerical Algorithms 59, 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.delta import Delta

_HIGH = 22
_REST = 16
"""Bits of the two parts of a number that are multiplied apart."""
_LOW = 8
"""Bits that are stored apart, so that a number takes five bytes."""
_STORED = _HIGH + _REST - _LOW
_TERMS = 2 ** (53 - 2 * _HIGH)
_AT_ONCE = 2**22
"""Numbers of a block of rows, float64: 32 MiB a temporary."""
EXPONENTS = (-320, 320)
"""Powers of two of a row or column; far beyond what weights need, and far from the ends of float64."""


@dataclass(frozen=True)
class Part:
    """One factor, its rows scaled by powers of two; the right factor is kept transposed in meaning but not in shape.

    A number is ``2^exponent (high + low / 256)``: five bytes, to ``2^-37`` of the largest number of its row (column).
    """

    high: Tensor  # int32, up to 2^30
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
        exponent = (torch.frexp(largest).exponent.long() - _STORED).clamp(*EXPONENTS)
        whole = factor * _power(-exponent).unsqueeze(dim)
        high = whole.round()
        low = ((whole - high) * 2**_LOW).round().clamp(-128, 127)
        return cls(high.to(torch.int32), low.to(torch.int8), exponent.to(torch.int16))

    def halves(self) -> tuple[Tensor, Tensor]:
        """Whole numbers ``a`` up to 2^22 and ``a'`` up to 2^15, float64, of ``2^16 a + a' = 256 high + low``."""
        whole = (self.high.long() << _LOW) + self.low.long()
        high = (whole + (1 << (_REST - 1))) >> _REST
        return high.double(), (whole - (high << _REST)).double()


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
    # Of whole numbers of 22 bits instead of those that are stored, which have 38 of them with their low bits.
    scale_O, scale_I = (_power(part.exponent.long() + _STORED - _HIGH) for part in (left, right))
    b_KI, b_rest_KI = right.halves()
    for at in range(0, rows, step):
        block = slice(at, at + step)
        a_OK, a_rest_OK = Part(left.high[block], left.low[block], left.exponent[block]).halves()
        total = torch.zeros(len(a_OK), columns, dtype=torch.float64, device=left.high.device)
        for k in range(0, right.high.shape[0], _TERMS):
            terms = slice(k, k + _TERMS)
            a, a_rest, b, b_rest = a_OK[:, terms], a_rest_OK[:, terms], b_KI[terms], b_rest_KI[terms]
            # One after the other, and no fused operations: every step is rounded the same way everywhere.
            rest = torch.cat([a, a_rest], dim=1) @ torch.cat([b_rest, b])
            total += a @ b
            total += rest * 2.0**-_REST
        total *= scale_O[block].unsqueeze(1)
        total *= scale_I
        found[block] = total.float()
    return found


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` in float64, put together from its bits: no library's ``pow`` has a say."""
    return ((exponent + 1023) << 52).view(torch.float64)
