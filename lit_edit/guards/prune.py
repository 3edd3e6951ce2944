"""PRUNE: keep the singular values of all changes together from outgrowing those of the original weight.

Legend: O = d_out, I = d_in, K = triples found, R = rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard
from lit_edit.spectrum import Spectrum, decompose, gram_svd

Restraint = Literal["log", "log2", "log1_5", "log1_2", "linear"]

_BASES: Mapping[str, float] = {"log": math.e, "log2": 2.0, "log1_5": 1.5, "log1_2": 1.2}


class PRUNE(Guard):
    r"""Restrain the large singular values of the accumulated change.

    .. math::
        W_t - W_0 = \sum_i \sigma_i u_i v_i^T, \qquad
        W' = W_0 + \sum_i F(\sigma_i)\, u_i v_i^T

    .. math::
        F(\sigma) = \begin{cases} \log_a \sigma - \log_a \sigma_{\max} + \sigma_{\max} & \sigma \ge \sigma_{\max} \\
        \sigma & \text{else} \end{cases}

    with :math:`\sigma_{\max}` the largest singular value of the original weight :math:`W_0` ``[d_out, d_in]`` and :math:`a` the
    base that ``restraint`` names (``log`` is e); ``linear`` is :math:`F(\sigma) = (\sigma + \sigma_{\max}) / 2`. ``F`` is
    continuous and increasing, but *lengthens* values just above :math:`\sigma_{\max}` where
    :math:`\sigma_{\max} < 1 / \ln a` (5.5 for ``log1_2``), as published. Only the triples at or above
    :math:`\sigma_{\max}` are looked for, so that what is taken out has low rank.

    Source: arXiv 2405.16821 and its released code. What differs from released code:

    * The PRUNE authors' code rebuilds the change from its first ``matrix_rank`` triples in float32; here everything below
      :math:`\sigma_{\max}` stays as it is, in float64. The two differ by float32 rounding.
    * ``mode="persistent"`` is ours: the published restraint is never fed back into editing (``mode="view"``).
    * The copy in AlphaEdit's code (``MEMIT_prune``) adds the restrained change to the weight that already holds the
      unrestrained one, :math:`W_0 + \Delta + F(\Delta)`. That is a mistake, and no option reproduces it.

    Args:
        restraint: which ``F``, by the names of the released code.
        mode: ``view`` edits without restraint and shows evaluation the restrained weight (the published protocol);
            ``persistent`` writes the restrained change, so that later batches start from it. What was restrained once is
            then restrained again by every later batch, as long as it is still above :math:`\sigma_{\max}`.

    Raises:
        EditError: if ``restraint`` or ``mode`` is none of those named, or the original weight is zero.
    """

    needs_spectrum = True

    def __init__(self, restraint: Restraint = "log1_2", mode: Literal["view", "persistent"] = "view") -> None:
        super().__init__()
        if restraint not in get_args(Restraint):
            raise EditError(f"PRUNE's restraint is {restraint!r}; it must be one of {', '.join(get_args(Restraint))}")
        if mode not in ("view", "persistent"):
            raise EditError(f"PRUNE's mode is {mode!r}; it must be view or persistent")
        self.restraint, self.mode = restraint, mode
        self._original: dict[int, Tensor] = {}
        self._sigma_max: dict[int, float] = {}

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """See :meth:`Guard.prepare`; keeps the original weight."""
        largest = float((spectrum if spectrum is not None else decompose(weight)).sigma[0])
        if not largest > 0:
            raise EditError(f"PRUNE cannot restrain layer {layer}: all singular values of its original weight are zero")
        self._sigma_max[layer] = largest
        self._original[layer] = weight.detach()

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`; the change as it came in ``view`` mode."""
        if self.mode == "view":
            return delta
        earlier = self._change(layer, weight)
        # While the weight is the original one, the factors can stay thin: a small SVD instead of one of the whole weight.
        total = delta if not bool(earlier.any()) else Delta.from_dense(earlier + delta.dense().double())
        correction = restraining(total, self._sigma_max[layer], self.restraint)
        if correction is None:
            return delta
        if not delta.is_low_rank:
            return Delta.from_dense(delta.dense() + correction.dense().to(delta.dense().dtype))
        left, right = delta.factors
        left_more, right_more = correction.factors
        return Delta.low_rank(torch.cat([left, left_more.to(left)], 1), torch.cat([right, right_more.to(right)], 0))

    def view(self, layer: int, weight: Tensor) -> Tensor:
        """See :meth:`Guard.view`; the restrained weight in ``view`` mode."""
        if self.mode == "persistent":
            return weight
        change = Delta.from_dense(self._change(layer, weight))
        correction = restraining(change, self._sigma_max[layer], self.restraint)
        return weight if correction is None else (weight.double() + correction.dense()).to(weight.dtype)

    def _change(self, layer: int, weight: Tensor) -> Tensor:
        """All changes so far, ``[d_out, d_in]`` float64."""
        return weight.double() - self._original[layer].to(weight.device).double()


def restrain(sigma: Tensor, sigma_max: float, restraint: Restraint) -> Tensor:
    """The map ``F`` of :class:`PRUNE` on singular values ``[k]``; those below ``sigma_max`` stay as they are."""
    if restraint == "linear":
        mapped = (sigma + sigma_max) / 2
    else:
        mapped = (sigma / sigma_max).log() / math.log(_BASES[restraint]) + sigma_max
    return torch.where(sigma >= sigma_max, mapped, sigma)


def restraining(change: Delta, sigma_max: float, restraint: Restraint) -> Delta | None:
    r"""What must be added to an accumulated change to restrain it.

    .. math:: \sum_{\sigma_i \ge \sigma_{\max}} (F(\sigma_i) - \sigma_i)\, u_i v_i^T

    Args:
        change: the accumulated change, thin or dense.
        sigma_max: largest singular value of the original weight.
        restraint: see :class:`PRUNE`.

    Returns:
        Float64 factors; ``None`` where nothing is to be restrained, or the change is not finite.
    """
    # No singular value exceeds the Frobenius norm: young changes cost no decomposition.
    if not sigma_max <= float(change.norm()) < math.inf:
        return None
    left_OK, sigma_K, right_IK = leading(change, lambda sigma: int((sigma >= sigma_max).sum()))
    if len(sigma_K) == 0:
        return None
    return Delta.low_rank(left_OK * (restrain(sigma_K, sigma_max, restraint) - sigma_K), right_IK.T)


def leading(change: Delta, choose: Callable[[Tensor], int]) -> tuple[Tensor, Tensor, Tensor]:
    r"""Leading singular triples in float64.

    Thin factors: QR of both and the SVD of the small core, :math:`O(r^2 (d_{out} + d_{in}))`. Dense: the eigenvectors of the
    Gram matrix of the smaller side. The latter squares the singular values, so triples below ``1e-7`` of the largest are noise
    and never returned.

    Args:
        change: the matrix, ``[d_out, d_in]``.
        choose: how many to return, given all singular values ``[k]``, descending.

    Returns:
        Left ``[d_out, n]``, singular values ``[n]``, right ``[d_in, n]``.
    """
    if change.is_low_rank:
        left, right = (factor.double() for factor in change.factors)
        left_OR, core_left = torch.linalg.qr(left)
        right_IR, core_right = torch.linalg.qr(right.T)
        u, sigma, vt = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
        count = choose(sigma)
        return left_OR @ u[:, :count], sigma[:count], right_IR @ vt[:count].T
    return gram_svd(change.dense().double(), lambda sigma: min(choose(sigma), int((sigma > 0).sum())))
