"""What every guard is: a change of one weight in, the part of it that may be written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from lit_edit.delta import Delta
from lit_edit.spectrum import Spectrum, Subspace


class Guard(nn.Module, ABC):
    """Base of all guards. A new guard is one file with one class with one formula.

    Guards are called in the order written, after the editor, and before the change is written: later layers of the same
    batch see what was really written. A guard that keeps state keeps it in buffers, which it replaces and never modifies in
    place: a batch that is undone takes the old ones back.
    """

    needs_spectrum: bool = False
    """Whether :meth:`prepare` wants the singular value decomposition of the original weight."""

    deferred: bool = False
    """Whether the guard acts only once the whole batch is solved, so that the layers of the batch see each other's change
    without it. Some published code writes like this; what is written then is not what the residuals were read from."""

    def prepare(self, layer: int, weight: Tensor, spectrum: Spectrum | None) -> None:
        """Set up one layer before the first batch.

        Args:
            layer: index of the transformer block.
            weight: the original weight, ``[d_out, d_in]``, float32.
            spectrum: its singular value decomposition; ``None`` where ``needs_spectrum`` is false.
        """

    def avoid(self, layer: int, weight: Tensor) -> Subspace | None:
        """Directions the editor itself should stay out of when it solves; ``None`` (the default) for none.

        Args:
            layer: index of the transformer block.
            weight: the weight before this change, ``[d_out, d_in]``, float32.
        """
        return None

    @abstractmethod
    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """The part of ``delta`` that may be written.

        Args:
            layer: index of the transformer block.
            delta: what the editor, or the guard before this one, wants to write.
            weight: the weight before this change, ``[d_out, d_in]``, float32.
        """

    def report(self, layer: int, before: Delta, after: Delta) -> dict[str, float]:
        r"""What the guard did, by name, for the logs.

        ``removed_share`` is :math:`1 - \|\Delta'\|_F^2 / \|\Delta\|_F^2`. Guards of a subspace add what share of
        :math:`\|\Delta\|_F^2` lay in it, see :func:`overlap`.

        Args:
            layer: index of the transformer block.
            before: as given to :meth:`forward`.
            after: what it returned.
        """
        wanted = float(before.norm())
        return {"removed_share": 1.0 - (float(after.norm()) / wanted) ** 2 if wanted > 0 else 0.0}

    def view(self, layer: int, weight: Tensor) -> Tensor:
        """The weight as evaluation should see it, ``[d_out, d_in]``; by default the one that was written."""
        return weight


def viewing(guards: Iterable[Guard]) -> list[Guard]:
    """Those of some guards that may show evaluation another weight than the one that was written."""
    return [guard for guard in guards if type(guard).view is not Guard.view]


def overlap(delta: Delta, space: Subspace) -> dict[str, float]:
    r"""Shares of a change that touch a subspace.

    .. math::
        \text{left} = \frac{\|U^T \Delta\|_F^2}{\|\Delta\|_F^2}, \quad
        \text{right} = \frac{\|\Delta V\|_F^2}{\|\Delta\|_F^2}, \quad
        \text{both} = \frac{\|U^T \Delta V\|_F^2}{\|\Delta\|_F^2}

    Args:
        delta: the change.
        space: orthonormal bases; a side without directions gives 0.
    """
    total = float(delta.norm()) ** 2
    if not total > 0:
        return {"overlap_left": 0.0, "overlap_right": 0.0, "overlap_both": 0.0}
    if delta.is_low_rank:
        left, right = (factor.double() for factor in delta.factors)
        from_left, from_right = space.left.double().T @ left, right @ space.right.double()
        parts = Delta.low_rank(from_left, right), Delta.low_rank(left, from_right), Delta.low_rank(from_left, from_right)
        shares = [float(part.norm()) ** 2 / total if min(part.shape) else 0.0 for part in parts]
    else:
        full = delta.dense().double()
        from_left = space.left.double().T @ full
        parts_full = (from_left, full @ space.right.double(), from_left @ space.right.double())
        shares = [float(part.norm()) ** 2 / total for part in parts_full]
    return dict(zip(("overlap_left", "overlap_right", "overlap_both"), shares, strict=True))
