"""What every editor is: keys and residuals in, a change of one weight out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.delta import Delta, remove_columns
from lit_edit.moments import SecondMoment
from lit_edit.solver import Inverse, Within, solve
from lit_edit.spectrum import Subspace


class Editor(nn.Module, ABC):
    """Base of all editors. A new editor is one file with one class with one formula.

    The trainer calls, per edited layer, :meth:`allocate` and :meth:`prepare` once, then for every batch :meth:`solve` and,
    once the batch is written, :meth:`remember`. State lives in buffers, so that a checkpoint holds it exactly; what can be
    recomputed from the original model is kept out of them.
    """

    needs_moments: bool = True
    """Whether :meth:`prepare` wants the second moment of the keys."""

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """Create the buffers of one layer, empty, so that a checkpoint can be loaded into them.

        Args:
            layer: index of the transformer block.
            d_out: rows of the edited weight.
            d_in: columns of the edited weight.
        """

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """Set up one layer before the first batch: whatever can be computed anew from the original model.

        Args:
            layer: index of the transformer block.
            weight: the original weight, ``[d_out, d_in]``, float32.
            moment: second moment of the layer's keys; ``None`` where ``needs_moments`` is false.
        """

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residuals: Tensor, avoid: Subspace | None = None) -> Delta:
        """The change that makes the keys write the residuals.

        Args:
            layer: index of the transformer block.
            keys: ``[n, d_in]``.
            residuals: ``[n, d_out]``.
            avoid: directions the solution must stay out of (a guard that constrains); ``None`` for none.
        """

    def remember(self, layer: int, keys: Tensor) -> None:
        """Take note of a batch that has been written.

        Args:
            layer: index of the transformer block.
            keys: ``[n, d_in]``, as given to :meth:`solve`.
        """


class LeastSquaresEditor(Editor):
    r"""An editor that is :func:`lit_edit.solver.solve` with its own metric ``A``; see :meth:`metric`."""

    mu: float = 1.0

    @abstractmethod
    def metric(self, layer: int) -> Inverse:
        r"""Applies :math:`A^{-1}` of this editor at ``layer``."""

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, avoid: Subspace | None = None) -> Delta:
        r"""See :meth:`Editor.solve`; under ``avoid`` with ``K -> \Pi_d K, R -> \Pi_m R, A -> \Pi_d A \Pi_d``."""
        inverse = self.metric(layer)
        if avoid is not None:
            keys = remove_columns(keys.double().T, avoid.right).T
            residuals = remove_columns(residuals.double().T, avoid.left).T
            if avoid.right.shape[1]:
                inverse = Within(inverse, avoid.right)
        return solve(inverse, keys, residuals, self.mu)


class KeyHistory(nn.Module):
    """The keys of all earlier batches of one layer, as one growing buffer ``[h, d_in]`` in float32."""

    keys: Tensor

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(0, d_in))

    def append(self, keys: Tensor) -> None:
        """Add rows ``[n, d_in]``."""
        self.keys = torch.cat([self.keys, keys.detach().to(self.keys)])

    def __len__(self) -> int:
        return self.keys.shape[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "keys")
        if stored is not None:  # the buffer's length is part of the state: make room before torch compares shapes
            self.keys = self.keys.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
