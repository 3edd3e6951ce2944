"""The change of one weight matrix, kept as two thin factors for as long as that is possible.

Legend: O = d_out, I = d_in, R = rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Delta:
    r"""A change ``left @ right`` of a weight ``[d_out, d_in]``, or a dense matrix when no thin form exists.

    .. math:: \Delta = L R, \qquad L \in \mathbb{R}^{O \times r},\; R \in \mathbb{R}^{r \times I}

    A batch of ``n`` edits has rank at most ``n``; its factors cost ``n (O + I)`` numbers instead of ``O I``, and every
    projection costs ``O(k n (O + I))``. Build it with :meth:`low_rank` or :meth:`from_dense`.
    """

    left: Tensor | None  # [O, R]
    right: Tensor | None  # [R, I]
    full: Tensor | None = None  # [O, I]

    def __post_init__(self) -> None:
        thin = self.left is not None and self.right is not None
        if thin == (self.full is not None):
            raise ValueError("a Delta is either two thin factors or one dense matrix")
        if thin:
            left, right = self.factors
            if left.shape[1] != right.shape[0]:
                raise ValueError(f"the factors {tuple(left.shape)} and {tuple(right.shape)} do not fit")

    @classmethod
    def low_rank(cls, left_OR: Tensor, right_RI: Tensor) -> Delta:
        """Delta from its factors, ``[d_out, r]`` and ``[r, d_in]``."""
        return cls(left_OR, right_RI)

    @classmethod
    def from_dense(cls, full_OI: Tensor) -> Delta:
        """Delta from a full matrix ``[d_out, d_in]``, for guards whose result has no thin form."""
        return cls(None, None, full_OI)

    @property
    def is_low_rank(self) -> bool:
        """Whether thin factors are held."""
        return self.full is None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Left ``[d_out, r]`` and right ``[r, d_in]`` of a change that :attr:`is_low_rank`."""
        assert self.left is not None and self.right is not None
        return self.left, self.right

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        if self.full is not None:
            return self.full.shape[0], self.full.shape[1]
        left, right = self.factors
        return left.shape[0], right.shape[1]

    def dense(self) -> Tensor:
        """The full matrix, ``[d_out, d_in]``."""
        if self.full is not None:
            return self.full
        left, right = self.factors
        return left @ right

    def norm(self) -> Tensor:
        r"""Frobenius norm, a float64 scalar; for factors :math:`\sqrt{\langle L^T L, R R^T\rangle}`, never densified."""
        if self.full is not None:
            core = self.full.double()
        else:
            left, right = (factor.double() for factor in self.factors)
            # QR keeps the small singular values that the product of two Gram matrices would lose to cancellation.
            core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T
        norm: Tensor = core.norm()
        return norm

    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return all(is_finite(part) for part in (self.left, self.right, self.full) if part is not None)

    def to(self, dtype: torch.dtype) -> Delta:
        """The same change in another floating dtype."""
        return Delta(*(None if part is None else part.to(dtype) for part in (self.left, self.right, self.full)))

    def without_left(self, basis_OK: Tensor) -> Delta:
        r""":math:`(I - U U^T)\,\Delta` for an orthonormal ``basis`` ``[d_out, k]``."""
        if self.full is not None:
            return Delta.from_dense(remove_columns(self.full, basis_OK))
        left, right = self.factors
        return Delta.low_rank(remove_columns(left, basis_OK), right)

    def without_right(self, basis_IK: Tensor) -> Delta:
        r""":math:`\Delta\,(I - V V^T)` for an orthonormal ``basis`` ``[d_in, k]``."""
        if self.full is not None:
            return Delta.from_dense(remove_columns(self.full.T, basis_IK).T)
        left, right = self.factors
        return Delta.low_rank(left, remove_columns(right.T, basis_IK).T)


def remove_columns(matrix_DN: Tensor, basis_DK: Tensor) -> Tensor:
    r"""Take the span of an orthonormal basis out of every column: :math:`M - B (B^T M)`.

    Args:
        matrix_DN: ``[d, n]``.
        basis_DK: ``[d, k]``, orthonormal columns.
    """
    basis = basis_DK.to(matrix_DN.dtype)
    return matrix_DN - basis @ (basis.T @ matrix_DN)


def is_finite(value: Tensor) -> bool:
    """Whether every number of a tensor is finite; found out without another tensor of its size, tens of times as fast."""
    if not value.numel():
        return True
    value = value.detach()
    # The same numbers in the order in which they lie in memory.
    low, high = torch.aminmax(value.T if value.dim() == 2 and value.T.is_contiguous() else value)
    return bool(torch.isfinite(low) & torch.isfinite(high))  # NaN anywhere makes both of them NaN
