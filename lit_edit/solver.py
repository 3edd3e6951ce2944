"""The one least-squares solver that every closed-form editor of the family is a special case of.

Legend: O = d_out, I = d_in, N = edits of the batch, H = remembered keys, K = directions left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.algebra.inverses import Inverse
from lit_edit.delta import Delta
from lit_edit.errors import EditError


class Stack:
    """Rows that grow from below without being copied every time; a shorter version of it stays as it is.

    Args:
        rows: what it begins with, ``[n, width]``.
    """

    def __init__(self, rows: Tensor) -> None:
        self._store, self._count, self._filled = rows, len(rows), [len(rows)]

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        """The rows, ``[n, width]``."""
        return self._store[: self._count]

    def with_more(self, rows: Tensor) -> Stack:
        """A longer version, in the same memory where there is room and no other version has taken it."""
        other = Stack(self.rows)
        total = self._count + len(rows)
        if self._filled[0] != self._count or total > len(self._store):
            store = self._store.new_empty(max(total, 3 * total // 2), self._store.shape[1])
            store[: self._count] = self.rows
            other._store, other._filled = store, [self._count]
        else:
            other._store, other._filled = self._store, self._filled
        other._store[self._count : total] = rows
        other._count = other._filled[0] = total
        return other


class WithHistory:
    r"""Inverse of :math:`A_0 + H H^T` for remembered keys ``H`` ``[d_in, h]``, by the Woodbury identity.

    .. math:: A^{-1} X = A_0^{-1} X - G\,(I + H^T G)^{-1} G^T X, \qquad G = A_0^{-1} H

    It grows by portions: :meth:`extended` adds columns to ``H``, borders the Cholesky factor of :math:`I + H^T G` and reuses
    what is there.

    Args:
        base: inverse of :math:`A_0`.
        history_IH: remembered keys as columns; ``None`` for none yet.
    """

    def __init__(self, base: Inverse, history_IH: Tensor | None = None) -> None:
        self.base = base
        self.history: Stack | None = None  # [H, I], keys as rows, as they were given
        self.applied: Stack | None = None  # [H, I], G^T
        self.factor: Tensor | None = None  # [H, H], lower Cholesky factor of I + H^T G
        self._last: tuple[Tensor, Tensor, Tensor | None] | None = None
        """What was solved for last, X, with :math:`A_0^{-1} X` and :math:`G^T X`."""
        if history_IH is not None:
            self._append(history_IH)

    @property
    def count(self) -> int:
        """Number of remembered keys."""
        return 0 if self.history is None else len(self.history)

    def extends(self, keys_HI: Tensor) -> bool:
        """Whether the first :attr:`count` of some keys (rows) are those remembered here."""
        if self.history is None:
            return True
        return self.count <= len(keys_HI) and torch.equal(self.history.rows, keys_HI[: self.count])

    def extended(self, more_IN: Tensor) -> WithHistory:
        """The same inverse with further keys, ``[d_in, n]``."""
        other = WithHistory(self.base)
        other.history, other.applied, other.factor, other._last = self.history, self.applied, self.factor, self._last
        other._append(more_IN)
        return other

    def _seen(self, columns_IN: Tensor) -> tuple[Tensor, Tensor | None]:
        """What base and remembered keys make of some columns. A batch is solved for, then remembered: once is enough."""
        last = self._last
        if last is None or not torch.equal(last[0], columns_IN):
            side = None if self.applied is None else self.applied.rows @ columns_IN
            last = columns_IN, self.base(columns_IN), side
        self._last = last
        return last[1], last[2]

    def _append(self, more_IN: Tensor) -> None:
        more = more_IN.double()
        based, side = self._seen(more)
        self._last = None  # of another history from here on
        block = based.T @ more
        block = (block + block.T) / 2
        block.diagonal().add_(1.0)
        if self.history is None or self.applied is None or self.factor is None or side is None:
            self.history, self.applied, self.factor = Stack(more_IN.T), Stack(based.T), torch.linalg.cholesky(block)
            return
        border = torch.linalg.solve_triangular(self.factor, side, upper=False)
        corner = torch.linalg.cholesky(block - border.T @ border)
        above = torch.cat([self.factor, self.factor.new_zeros(self.count, len(corner))], 1)
        self.factor = torch.cat([above, torch.cat([border.T, corner], 1)])
        self.history, self.applied = self.history.with_more(more_IN.T), self.applied.with_more(based.T)

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        based, side = self._seen(columns_IN.double())
        if self.applied is None or self.factor is None or side is None:
            return based
        taken = torch.cholesky_solve(side, self.factor)
        return (based.T - taken.T @ self.applied.rows).T


class Within:
    r"""Pseudo-inverse of :math:`\Pi A \Pi` with :math:`\Pi = I - V V^T`: solving inside the allowed subspace.

    .. math:: (\Pi A \Pi)^+ X = A^{-1} X - A^{-1} V (V^T A^{-1} V)^{-1} V^T A^{-1} X \quad\text{for } X = \Pi X

    Args:
        base: inverse of ``A``.
        forbidden_IK: orthonormal ``V`` ``[d_in, k]``.
    """

    def __init__(self, base: Inverse, forbidden_IK: Tensor) -> None:
        self.base = base
        self.forbidden = forbidden_IK.double()
        self.applied = base(self.forbidden)  # [I, K]
        gram = self.forbidden.T @ self.applied
        self.factor = torch.linalg.cholesky((gram + gram.T) / 2)

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        plain = self.base(columns_IN)
        return plain - self.applied @ torch.cholesky_solve(self.forbidden.T @ plain, self.factor)


def solve(inverse: Inverse, keys_NI: Tensor, residuals_NO: Tensor, mu: float = 1.0) -> Delta:
    r"""The change that makes the keys write the residuals at least cost in the metric ``A``.

    .. math:: G = A^{-1} K, \qquad Q = K^T G + \mu I, \qquad \Delta = R\, Q^{-1} G^T

    It minimises :math:`\|R - \Delta K\|_F^2 + \mu\,\mathrm{tr}(\Delta A \Delta^T)` and, for :math:`\mu \to 0`, the second
    term subject to :math:`\Delta K = R`. With :math:`A = \lambda C, \mu = 1` it is MEMIT (Meng et al. 2022,
    arXiv 2210.07229, eq. 14): :math:`R K^T (\lambda C + K K^T)^{-1}`.

    Args:
        inverse: applies :math:`A^{-1}`.
        keys_NI: keys as rows, ``[n, d_in]``.
        residuals_NO: what each key should write in addition, ``[n, d_out]``.
        mu: >= 0.

    Returns:
        Float64 factors of rank ``n``: left ``[d_out, n]`` and right ``[n, d_in]``.

    Raises:
        EditError: if ``Q`` is singular (equal keys with ``mu = 0``).
    """
    keys_IN = keys_NI.double().T
    applied = inverse(keys_IN)
    gram = keys_IN.T @ applied
    gram = (gram + gram.T) / 2  # symmetric in exact arithmetic; rounding is not
    gram.diagonal().add_(mu)
    factor, failed = torch.linalg.cholesky_ex(gram)
    # Rounding may leave a singular matrix barely definite; with slack (mu > 0) it is not singular.
    pivots = factor.diagonal().square()
    lost = mu == 0 and bool(pivots.min() <= len(keys_IN) * torch.finfo(torch.float64).eps * pivots.max())
    if int(failed) != 0 or lost:
        raise EditError(
            f"the {len(keys_NI)} keys of this batch are linearly dependent and mu is {mu:g}; use mu > 0 or distinct subjects"
        )
    left_ON = torch.cholesky_solve(residuals_NO.double(), factor).T
    return Delta.low_rank(left_ON, applied.T)
