"""The one least-squares solver that every closed-form editor of the family is a special case of.

Legend: O = d_out, I = d_in, N = edits of the batch, H = remembered keys, K = directions left out.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError


class Inverse(Protocol):
    r"""Anything that applies :math:`A^{-1}` of a symmetric positive definite ``A`` ``[d_in, d_in]`` in float64."""

    def __call__(self, columns_IN: Tensor) -> Tensor:
        r""":math:`A^{-1} X` for ``X`` ``[d_in, n]``."""
        ...


class Metric(Inverse, Protocol):
    """An inverse that also knows its matrix."""

    def matrix(self, d_in: int) -> Tensor:
        r""":math:`A` itself, ``[d_in, d_in]`` float64."""
        ...


class SpectralInverse:
    r"""Inverse of :math:`A = s\,C + \nu I` from one eigendecomposition :math:`C = V \Lambda V^T`.

    The decomposition is made once per layer and serves every ``scale`` and ``ridge``. Eigenvalues below
    ``floor`` times the largest are lifted to it: directions that the corpus never used would otherwise divide by zero
    (dead neurons), and lifting them is the limit of a vanishing ridge.

    Args:
        eigenvalues: ``[d_in]``, ascending, of the mean second moment of the keys.
        eigenvectors: ``[d_in, d_in]``, columns.
        scale: weight ``s`` of the second moment (MEMIT's lambda), > 0.
        ridge: ``nu`` >= 0.
        floor: relative floor of the eigenvalues.

    Raises:
        EditError: if ``A`` would not be positive definite.
    """

    def __init__(
        self, eigenvalues: Tensor, eigenvectors: Tensor, scale: float, ridge: float = 0.0, floor: float = 1e-10
    ) -> None:
        values = eigenvalues.double()
        values = scale * values.clamp_min(floor * float(values.max())) + ridge
        if not bool((values > 0).all()):
            raise EditError(
                f"the preservation term is singular: its smallest eigenvalue is {float(values.min()):.3g}, "
                "so lambda and the second moments must be positive"
            )
        self.vectors = eigenvectors.double()
        self.values = values

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        return self.vectors @ ((self.vectors.T @ columns_IN.double()) / self.values[:, None])

    def matrix(self, d_in: int) -> Tensor:
        """See :class:`Metric`."""
        return (self.vectors * self.values) @ self.vectors.T


class Pencil:
    r"""Inverse of :math:`c\,C + G` for every ``c`` from one factorisation: :math:`X^T C X = I`, :math:`X^T G X = M`.

    .. math:: (c\,C + G)^{-1} = X\,(c I + M)^{-1} X^T

    Args:
        eigenvalues: of ``C``, ``[d_in]``; lifted as in :class:`SpectralInverse`.
        eigenvectors: of ``C``, ``[d_in, d_in]``, columns.
        matrix_II: ``G``, symmetric and positive semidefinite.
        floor: relative floor of the eigenvalues.
    """

    def __init__(self, eigenvalues: Tensor, eigenvectors: Tensor, matrix_II: Tensor, floor: float = 1e-10) -> None:
        values = eigenvalues.double()
        root = values.clamp_min(floor * float(values.max())).sqrt()
        half = eigenvectors.double() / root
        inner = half.T @ matrix_II.double() @ half
        weights, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        self.both = half @ vectors  # X
        self.weights = weights.clamp_min(0)  # the diagonal of M

    def at(self, scale: float) -> Inverse:
        """The inverse for one ``c`` > 0."""
        return lambda columns_IN: self.both @ ((self.both.T @ columns_IN.double()) / (scale + self.weights)[:, None])


class Ridge:
    r"""Inverse of :math:`A = \nu I`.

    Args:
        ridge: ``nu`` > 0.

    Raises:
        EditError: if ``nu`` is not positive.
    """

    def __init__(self, ridge: float) -> None:
        if not ridge > 0:
            raise EditError(f"the preservation term is singular: its ridge is {ridge:g}; it must be positive")
        self.ridge = ridge

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        return columns_IN.double() / self.ridge

    def matrix(self, d_in: int) -> Tensor:
        """See :class:`Metric`."""
        return self.ridge * torch.eye(d_in, dtype=torch.float64)


class DenseInverse:
    r"""Inverse of a symmetric positive definite matrix by its Cholesky factor.

    Args:
        matrix_II: ``A`` ``[d_in, d_in]``.

    Raises:
        EditError: if ``A`` is not positive definite.
    """

    def __init__(self, matrix_II: Tensor) -> None:
        matrix = matrix_II.double()
        self.factor, failed = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
        if int(failed) != 0:
            raise EditError("the preservation term is singular; use a larger lambda or ridge")

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        return torch.cholesky_solve(columns_IN.double(), self.factor)

    def matrix(self, d_in: int) -> Tensor:
        """See :class:`Metric`."""
        return self.factor @ self.factor.T

    def condition_number(self, steps: int = 12) -> float:
        r""":math:`\lambda_{\max} / \lambda_{\min}` from below, by power and inverse iteration on a fixed start."""
        size = self.factor.shape[0]
        start = torch.randn(size, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(self.factor.device)
        large, small = start, start
        for _ in range(steps):
            large = torch.linalg.qr(self.factor @ (self.factor.T @ large)).Q
            small = torch.linalg.qr(self(small)).Q
        largest = (self.factor.T @ large).square().sum(0).max()
        smallest = (self.factor.T @ small).square().sum(0).min()
        return float(largest / smallest)


def moment_inverse(mean_II: Tensor, scale: float, ridge: float = 0.0) -> Metric:
    r"""Inverse of :math:`A = s\,C + \nu I` for a second moment ``C``, the cheapest way that is exact.

    A well-conditioned ``A`` is factored by Cholesky: a thirtieth of the work of an eigendecomposition, and every use of it half
    of the work. Otherwise (directions that the corpus never used) the spectrum has to be lifted, see :class:`SpectralInverse`.

    Args:
        mean_II: ``C`` ``[d_in, d_in]``.
        scale: ``s`` > 0.
        ridge: ``nu`` >= 0.

    Raises:
        EditError: if ``A`` cannot be made positive definite.
    """
    mean = mean_II.double()
    mean = (mean + mean.T) / 2
    matrix = scale * mean
    matrix.diagonal().add_(ridge)
    try:
        direct = DenseInverse(matrix)
    except EditError:
        direct = None
    if direct is not None and direct.condition_number() < _WELL:
        return direct
    values, vectors = torch.linalg.eigh(mean)
    return SpectralInverse(values, vectors, scale, ridge)


_WELL = 1e8
"""Condition number up to which no eigenvalue is near the floor of :class:`SpectralInverse`, estimated from below."""


class WithHistory:
    r"""Inverse of :math:`A_0 + H H^T` for remembered keys ``H`` ``[d_in, h]``, by the Woodbury identity.

    .. math:: A^{-1} X = A_0^{-1} X - G\,(I + H^T G)^{-1} G^T X, \qquad G = A_0^{-1} H

    It grows by portions: :meth:`extended` adds columns to ``H`` and reuses what is there.

    Args:
        base: inverse of :math:`A_0`.
        history_IH: remembered keys as columns; ``None`` for none yet.
    """

    def __init__(self, base: Inverse, history_IH: Tensor | None = None) -> None:
        self.base = base
        self.history: Tensor | None = None  # [I, H]
        self.applied: Tensor | None = None  # [I, H]
        self.gram: Tensor | None = None  # [H, H], I + H^T G
        self._last: tuple[Tensor, Tensor] | None = None  # what was solved for last, and its solution by the base
        if history_IH is not None:
            self._append(history_IH)

    @property
    def count(self) -> int:
        """Number of remembered keys."""
        return 0 if self.history is None else self.history.shape[1]

    def extends(self, keys_HI: Tensor) -> bool:
        """Whether the first :attr:`count` of some keys (rows) are those remembered here."""
        if self.history is None:
            return True
        return self.count <= len(keys_HI) and torch.equal(self.history, keys_HI[: self.count].double().T)

    def extended(self, more_IN: Tensor) -> WithHistory:
        """The same inverse with further keys, ``[d_in, n]``."""
        other = WithHistory(self.base)
        other.history, other.applied, other.gram, other._last = self.history, self.applied, self.gram, self._last
        other._append(more_IN)
        return other

    def _append(self, more_IN: Tensor) -> None:
        more = more_IN.double()
        last = self._last
        # The keys of a batch are solved for, and then remembered: once is enough.
        applied = last[1] if last is not None and torch.equal(last[0], more) else self.base(more)
        block = more.T @ applied
        block.diagonal().add_(1.0)
        if self.history is None or self.applied is None or self.gram is None:
            self.history, self.applied, self.gram = more, applied, block
        else:
            side = self.history.T @ applied
            self.gram = torch.cat([torch.cat([self.gram, side], 1), torch.cat([side.T, block], 1)])
            self.history = torch.cat([self.history, more], 1)
            self.applied = torch.cat([self.applied, applied], 1)
        self._factor: Tensor | None = None

    @property
    def factor(self) -> Tensor:
        """Cholesky factor of :math:`I + H^T G`, ``[h, h]``; made when it is first asked for."""
        assert self.gram is not None
        if self._factor is None:
            self._factor = torch.linalg.cholesky((self.gram + self.gram.T) / 2)
        return self._factor

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        columns = columns_IN.double()
        based = self.base(columns)
        self._last = columns, based
        if self.applied is None:
            return based
        return based - self.applied @ torch.cholesky_solve(self.applied.T @ columns, self.factor)


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
    if int(failed) != 0:
        raise EditError(
            f"the {len(keys_NI)} keys of this batch are linearly dependent and mu is {mu:g}; use mu > 0 or distinct subjects"
        )
    left_ON = torch.cholesky_solve(residuals_NO.double(), factor).T
    return Delta.low_rank(left_ON, applied.T)
