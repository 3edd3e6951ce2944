"""The second moment of the keys of one layer: what it usually reads.

Legend: I = d_in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.delta import is_finite
from lit_edit.errors import EditError

ROUNDING = 1e-3
"""Relative error up to which a matrix counts as a second moment: released ones are float32 sums over millions of tokens."""


@dataclass(frozen=True)
class SecondMoment:
    r"""Mean uncentred second moment :math:`C = \frac1M \sum_{i=1}^{M} x_i x_i^T` of the inputs of one down-projection."""

    mean: Tensor  # [I, I], float32 (released statistics are float32 too)
    count: int
    """Number of tokens M."""
    change: float = math.nan
    r"""How well :math:`C` is known: relative Frobenius distance between the moment of half of the tokens and that of all, NaN
    where nobody knows. For independent halves its expected square is that of the relative error of :math:`C` itself."""
    effective: float = math.nan
    r"""How many tokens carry it, :math:`(\sum_i \|x_i\|^2)^2 / \sum_i \|x_i\|^4` (Kish 1965): one huge activation outweighs
    thousands of tokens. NaN where nobody knows."""

    def tensors(self) -> dict[str, Tensor]:
        """What the store keeps."""
        numbers = {"count": self.count, "change": self.change, "effective": self.effective}
        return {"mean": self.mean, **{name: torch.tensor(value) for name, value in numbers.items()}}

    @classmethod
    def of(cls, kept: dict[str, Tensor], device: torch.device) -> SecondMoment:
        """What the store gave back."""
        return cls(kept["mean"].to(device), int(kept["count"]), float(kept["change"]), float(kept["effective"]))

    def check(self, what: str) -> None:
        """Refuse what no keys can have as their second moment, as far as that costs no decomposition; see :func:`eigen`.

        Args:
            what: which one it is, for the error.

        Raises:
            EditError: if it is not finite, not symmetric, or has a diagonal that is negative or all zero.
        """
        advice = "collect it anew (delete it from --model.cache_dir) or name another --model.corpus or --model.moments_from"
        if not is_finite(self.mean):
            raise EditError(f"{what} holds numbers that are not finite; {advice}")
        low, high = torch.aminmax(self.mean.diagonal())
        if not (float(low) >= 0 and float(high) > 0):
            raise EditError(f"{what} has a diagonal, means of squares, that is negative or all zero; {advice}")
        for rows_PI, columns_IP in zip(self.mean.split(512), self.mean.split(512, dim=1), strict=True):
            if float((rows_PI - columns_IP.T).abs().max()) > ROUNDING * float(high):
                raise EditError(f"{what} is not symmetric; {advice}")

    def eigen(self) -> tuple[Tensor, Tensor]:
        """See :func:`eigen`; of the mean."""
        return eigen(self.mean)


def eigen(mean_II: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending, ``[d_in]``) and eigenvectors (columns, ``[d_in, d_in]``), float64, on the tensor's device.

    Raises:
        EditError: if an eigenvalue is more negative than rounding makes those of a second moment.
    """
    mean = mean_II.double()
    values, vectors = torch.linalg.eigh((mean + mean.T) / 2)
    least, most = float(values[0]), float(values[-1])
    if least < -ROUNDING * most:
        raise EditError(
            f"the second moment is not positive semidefinite: its eigenvalues go from {least:.3g} to {most:.3g}, and means of "
            "squares are not negative; collect it anew or name another --model.corpus or --model.moments_from"
        )
    return values, vectors
