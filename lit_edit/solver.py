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


class WithHistory:
    r"""Inverse of :math:`A_0 + H H^T` for remembered keys ``H`` ``[d_in, h]``, by the Woodbury identity.

    .. math:: A^{-1} X = A_0^{-1} X - G\,(I + H^T G)^{-1} G^T X, \qquad G = A_0^{-1} H

    Args:
        base: inverse of :math:`A_0`.
        history_IH: remembered keys as columns.
    """

    def __init__(self, base: Inverse, history_IH: Tensor) -> None:
        history = history_IH.double()
        self.base = base
        self.applied = base(history)  # [I, H]
        gram = history.T @ self.applied
        gram.diagonal().add_(1.0)
        self.factor = torch.linalg.cholesky(gram)

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`Inverse`."""
        columns = columns_IN.double()
        return self.base(columns) - self.applied @ torch.cholesky_solve(self.applied.T @ columns, self.factor)


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
