"""RandomSubspace: the control for REVIVE, which protects as many directions, but any."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard, overlap
from lit_edit.spectrum import Spectrum, Subspace, decompose, energy_rank


class RandomSubspace(Guard):
    r"""Keep every update out of a random subspace.

    .. math:: \Delta' = (I - A_k A_k^T)\,\Delta\,(I - B_k B_k^T)

    with orthonormal bases :math:`A_k` ``[d_out, k]`` and :math:`B_k` ``[d_in, k]`` of uniformly distributed subspaces. What
    REVIVE gains over this with the same ``k`` is due to *which* directions it protects, and not to writing less.

    The bases are drawn on the CPU in float64 from a generator of their own that is seeded by ``seed`` and the layer: they are
    the same on every device, in every run, and whatever else draws random numbers.

    The control is the project's own; no code is published.

    Args:
        k: number of directions on each side.
        tau: instead of ``k``, as many as :class:`lit_edit.guards.REVIVE` protects with this ``tau``.
        seed: another seed gives other subspaces.
        side: ``both``, ``left`` (outputs) or ``right`` (inputs).

    Raises:
        EditError: if not exactly one of ``k`` and ``tau`` is given, one is out of range, ``side`` is none of those named, or
            nothing would be left to write into.
    """

    def __init__(
        self,
        k: int | None = None,
        tau: float | None = None,
        seed: int = 0,
        side: Literal["both", "left", "right"] = "both",
    ) -> None:
        super().__init__()
        if (k is None) == (tau is None):
            raise EditError("RandomSubspace needs either k or tau, and not both")
        if k is not None and k < 1:
            raise EditError(f"RandomSubspace's k is {k}; the number of directions must be at least 1")
        if tau is not None and not 0 < tau < 1:
            raise EditError(f"RandomSubspace's tau is {tau:g}; the protected share of the singular values must lie in (0, 1)")
        if side not in ("both", "left", "right"):
            raise EditError(f"RandomSubspace's side is {side!r}; it must be both, left or right")
        self.k, self.tau, self.seed, self.side = k, tau, seed, side
        self.needs_spectrum = tau is not None
        self._protected: dict[int, Subspace] = {}

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """See :meth:`Guard.prepare`."""
        rank = self._rank(weight, spectrum)
        if rank >= min(weight.shape):
            raise EditError(
                f"RandomSubspace would protect {rank} directions of layer {layer}, whose weight has only {min(weight.shape)}, "
                "so that no edit could be written; use fewer"
            )
        # A hash keeps neighbouring seeds and layers from sharing a stream, as any sum of the two would.
        digest = hashlib.sha256(f"{self.seed}/{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        # Both sides are always drawn, so that a side's subspace is the same whichever are guarded.
        left, right = (_orthonormal(width, rank, generator).to(weight.device) for width in weight.shape)
        self._protected[layer] = Subspace(
            left[:, : 0 if self.side == "right" else rank], right[:, : 0 if self.side == "left" else rank]
        )

    def _rank(self, weight: Tensor, spectrum: Spectrum | None) -> int:
        if self.tau is None:
            assert self.k is not None
            return self.k
        return energy_rank((spectrum if spectrum is not None else decompose(weight)).sigma, self.tau)

    def protected(self, layer: int) -> Subspace:
        """The protected directions of a layer (a side that is not guarded has none)."""
        return self._protected[layer]

    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """See :meth:`Guard.forward`."""
        protected = self._protected[layer]
        return delta.without_left(protected.left).without_right(protected.right)

    def report(self, layer: int, before: Delta, after: Delta) -> dict[str, float]:
        """See :meth:`Guard.report`; with the overlap with the protected directions."""
        return {**super().report(layer, before, after), **overlap(before, self._protected[layer])}


def _orthonormal(width: int, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal basis of a uniformly distributed subspace, ``[width, count]`` float64."""
    basis: Tensor = torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64)).Q
    return basis
