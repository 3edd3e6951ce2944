"""What every guard is: a change of one weight in, the part of it that may be written out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lit_edit.delta import Delta
from lit_edit.spectrum import Spectrum, Subspace


class Guard(nn.Module, ABC):
    """Base of all guards. A new guard is one file with one class with one formula.

    Guards are called in the order written, after the editor, and before the change is written: later layers of the same
    batch see what was really written.
    """

    needs_spectrum: bool = False
    """Whether :meth:`prepare` wants the singular value decomposition of the original weight."""

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
            weight: the weight before this batch, ``[d_out, d_in]``, float32.
        """
        return None

    @abstractmethod
    def forward(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """The part of ``delta`` that may be written.

        Args:
            layer: index of the transformer block.
            delta: what the editor, or the guard before this one, wants to write.
            weight: the weight before this batch, ``[d_out, d_in]``, float32.
        """
