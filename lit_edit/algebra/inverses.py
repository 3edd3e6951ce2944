"""Inverses of the matrices that the solver measures a change in.

Legend: I = d_in, N = columns that an inverse is applied to.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lit_edit.algebra.second_moment import eigen
from lit_edit.errors import EditError

_WELL = 1e8
"""Condition number up to which an explicit inverse is as good as a factor: it loses half of float64's digits at most."""


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


class FactoredInverse:
    r"""Inverse of a symmetric positive definite matrix by its Cholesky factor, for one use or a few.

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


class DenseInverse:
    r"""Inverse of a symmetric positive definite matrix, for many uses.

    A well-conditioned one is inverted explicitly: applying it is then one matrix product, which is several times as fast as two
    triangular solves with as many operations, on a CPU and more so on a GPU.

    Args:
        matrix_II: ``A`` ``[d_in, d_in]``.

    Raises:
        EditError: if ``A`` is not positive definite.
    """

    def __init__(self, matrix_II: Tensor) -> None:
        factored = FactoredInverse(matrix_II)
        inverse = torch.cholesky_inverse(factored.factor)
        self.inverse = inverse if _condition_number(factored.factor, inverse) < _WELL else None
        """``None`` where two triangular solves are better."""
        self.factored = factored if self.inverse is None else None

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        if self.factored is not None:
            return self.factored(columns_IN)
        assert self.inverse is not None
        return (columns_IN.double().T @ self.inverse).T  # keys are rows in memory: this way round nothing is copied


class MomentInverse(DenseInverse):
    r"""Inverse of :math:`A = s\,C + \nu I`.

    Args:
        mean_II: ``C`` ``[d_in, d_in]``; kept as it is.
        scale: ``s`` > 0.
        ridge: ``nu`` >= 0.

    Raises:
        EditError: if ``A`` is not positive definite.
    """

    def __init__(self, mean_II: Tensor, scale: float, ridge: float) -> None:
        self.mean, self.scale, self.ridge = mean_II, scale, ridge
        super().__init__(self.matrix(mean_II.shape[0]))

    def matrix(self, d_in: int) -> Tensor:
        """See :class:`Metric`."""
        mean = self.mean.double()
        found = (mean + mean.T).mul_(self.scale / 2)
        found.diagonal().add_(self.ridge)
        return found


def moment_inverse(mean_II: Tensor, scale: float, ridge: float = 0.0) -> Metric:
    r"""Inverse of :math:`A = s\,C + \nu I` for a second moment ``C``, the cheapest way that is exact.

    A well-conditioned ``A`` is factored by Cholesky, a tenth of the work of an eigendecomposition. Otherwise (directions that
    the corpus never used) the spectrum has to be lifted, see :class:`SpectralInverse`.

    Args:
        mean_II: ``C`` ``[d_in, d_in]``.
        scale: ``s`` > 0.
        ridge: ``nu`` >= 0.

    Raises:
        EditError: if ``A`` cannot be made positive definite, or ``C`` is no second moment.
    """
    try:
        direct = MomentInverse(mean_II, scale, ridge)
        if direct.inverse is not None:
            return direct
    except EditError:
        pass
    return SpectralInverse(*eigen(mean_II), scale, ridge)


def _condition_number(factor_II: Tensor, inverse_II: Tensor, steps: int = 10) -> float:
    r""":math:`\lambda_{\max} / \lambda_{\min}` from below, by power iteration on ``A`` and its inverse from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, factor_II.shape[0], generator=generator, dtype=torch.float64).to(factor_II.device)
    large, small = start, start
    for _ in range(steps):
        large = torch.linalg.qr(((large @ factor_II) @ factor_II.T).T).Q.T
        small = torch.linalg.qr((small @ inverse_II).T).Q.T
    largest = (large @ factor_II).square().sum(1).max()
    smallest = ((small @ inverse_II) * small).sum(1).max()  # of the inverse, its largest
    return float(largest * smallest)
