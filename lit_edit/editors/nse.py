"""NSE: neuron-level sequential editing.

Legend: N = requests, O = d_out, I = d_in, S = selected neurons, R = rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_edit.algebra.inverses import FactoredInverse, Inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.batch.finite import finite
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.preserving import PreservingEditor
from lit_edit.errors import EditError
from lit_edit.prompts import EditRows
from lit_edit.solver import Within, solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench


class NSE(PreservingEditor):
    r"""Write only into the neurons that carry the new facts' keys, again for those facts that have not arrived.

    .. math:: \Delta_{:,s} = R K_s^T \bigl(\lambda C_{ss} + (H H^T)_{ss} + K_s K_s^T\bigr)^{-1}, \qquad
        \Delta_{:,\bar s} = 0

    with keys ``K`` ``[d_in, n]``, residuals ``R`` ``[d_out, n]``, second moment ``C``, keys of earlier batches ``H``, and
    ``s`` the input neurons of the layer whose score :math:`\sum_j |k_j|` is largest: they are taken in descending order while
    their scores sum to at most ``neuron_threshold`` of all (at least one is). It is the same least squares as MEMIT's with
    history, over changes that leave the other columns alone.

    Targets are optimised on the *original* weights ("weights rewinding"). Up to ``passes`` times the batch goes through all
    layers; a pass solves for the *active* requests only, those with ``alpha < ||z* - z|| < upper_bound`` at the last edited
    layer, both in units of the hidden state, and ends the batch if there are none. The keys of *all* requests then enter the
    history, read on the weights after the passes: also those of requests that were close enough from the start, and of those
    beyond ``upper_bound``, which are never written. How many were active is logged as ``nse/active/pass_0`` and so on.

    Source: Jiang et al. 2024, arXiv 2410.04045, and its released code, from which this differs in three ways. Its
    ``max_iterations`` of 3 never runs the third pass, hence 2 here. With a threshold of 1 it drops a few of the last neurons
    at random, where the rounded sum of all scores exceeds their rounded total; here 1 keeps all. It tokenises answers without
    the blank in front when it precomputes targets (every other path adds it), an error that is not reproduced.

    Args:
        lam: weight of the second moment (``mom2_update_weight``; 10,000 for GPT-2-XL, 15,000 for GPT-J and Llama-3-8B).
        alpha: a request this close to its target is left alone (35 for GPT-2-XL, 15 for GPT-J, 2.5 for Llama-3-8B).
        upper_bound: a request this far from its target is given up (150, 100 and 50).
        neuron_threshold: share of the scores that the selected neurons hold; 1 selects all (1, 0.8 and 1).
        passes: most passes over the layers (``max_iterations`` less one).

    Raises:
        EditError: if ``lam``, ``neuron_threshold`` or ``passes`` is not positive, ``alpha`` is negative, or ``upper_bound`` is
            not above it.
    """

    def __init__(
        self,
        lam: float = 15000.0,
        alpha: float = 2.5,
        upper_bound: float = 50.0,
        neuron_threshold: float = 1.0,
        passes: int = 2,
    ) -> None:
        super().__init__(lam, history=True)
        if not alpha >= 0:
            raise EditError(f"NSE's alpha is {alpha:g}; a distance must not be negative")
        if not upper_bound > alpha:
            raise EditError(f"NSE's upper_bound is {upper_bound:g}; it must be above alpha ({alpha:g}), or nothing is edited")
        if not neuron_threshold > 0:
            raise EditError(f"NSE's neuron_threshold is {neuron_threshold:g}; the share of the scores must be positive")
        if passes < 1:
            raise EditError(f"NSE's passes is {passes}; at least one pass over the layers is needed")
        self.alpha, self.upper_bound = alpha, upper_bound
        self.neuron_threshold, self.passes = neuron_threshold, passes
        self._matrices: dict[int, Tensor] = {}  # [I, I] float64, made where a block of it is first needed

    # ---------------------------------------------------------------- which requests, on which weights

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`LocateThenEdit.targets`; on the original weights."""
        with bench.original_model():
            return bench.optimise(rows)

    def settle(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets) -> None:
        """See :meth:`LocateThenEdit.settle`; passes over the layers for as long as requests are active."""
        for index in range(self.passes):
            active = self.active(bench, rows, aimed)
            bench.note(f"nse/active/pass_{index}", len(active))
            if not active:
                break
            self.walk(bench, [rows[at] for at in active], aimed.values_ND[active])
        bench.finish()
        reader = bench.reader(rows)
        for layer in bench.layers:
            keys = reader.keys(layer)
            self.remember(layer, keys, bench.weight(layer))
            bench.wrote_to(layer, keys)

    def active(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets) -> list[int]:
        """Indices of the requests whose distance to their target lies between ``alpha`` and ``upper_bound``."""
        distance = (aimed.values_ND - bench.reader(rows).values(bench.layers[-1])).norm(dim=1)
        finite("the distances of the requests to their targets", distance)
        return torch.nonzero((distance > self.alpha) & (distance < self.upper_bound))[:, 0].tolist()

    # ---------------------------------------------------------------- which neurons

    def selected(self, keys_NI: Tensor) -> Tensor:
        """The neurons to write into, a mask ``[d_in]``."""
        scores, order = keys_NI.double().abs().sum(0).sort(descending=True, stable=True)
        mask = torch.ones_like(order, dtype=torch.bool)
        if self.neuron_threshold < 1:
            kept = int((scores.cumsum(0) <= self.neuron_threshold * scores.sum()).sum())
            mask[order[max(kept, 1) :]] = False
        return mask

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`LocateThenEdit.solve`; the right factor is zero on every neuron that is not selected."""
        mask = self.selected(keys)
        inverse = self.within(layer, mask)
        keys = keys.double() * mask
        if avoid is not None:
            residuals = remove_columns(residuals.double().T, avoid.left).T
            closed = basis_of(avoid.right.double() * mask[:, None])
            keys = remove_columns(keys.T, closed).T
            inverse = Within(inverse, closed)
        left_OR, right_RI = solve(inverse, keys, residuals, self.weighting(keys)).factors
        return Delta.low_rank(left_OR, right_RI * mask)

    def within(self, layer: int, mask_I: Tensor) -> Inverse:
        r"""Applies :math:`(\Pi A \Pi)^+` with :math:`\Pi` the projection on the selected neurons, by the cheaper of two ways.

        Keeping out of ``t`` directions costs :math:`4 d^2 t` operations in the eigenbasis of ``C``, factoring the block of
        ``s`` selected neurons :math:`s^3 / 3`.
        """
        width, selected = len(mask_I), int(mask_I.sum())
        if selected == width:
            return self.metric(layer)
        if 12 * width * width * (width - selected) < selected**3:
            return self.outside_closed(layer, mask_I)
        return self.inside_block(layer, mask_I)

    def outside_closed(self, layer: int, mask_I: Tensor) -> Inverse:
        """The inverse that keeps out of the coordinate directions of the neurons that are not selected."""
        directions = torch.eye(len(mask_I), dtype=torch.float64, device=mask_I.device)
        return Within(self.metric(layer), directions[:, ~mask_I])

    def inside_block(self, layer: int, mask_I: Tensor) -> Inverse:
        """The inverse of the principal block of the selected neurons, zero elsewhere."""
        if layer not in self._matrices:
            self._matrices[layer] = self._start[layer].matrix(len(mask_I))
        chosen = torch.nonzero(mask_I)[:, 0]
        block = (chosen[:, None], chosen)
        history = self.remembered(layer)
        matrix = self._matrices[layer][block]
        if history.folded.numel():
            matrix = matrix + history.folded[block]
        earlier = history.keys[:, chosen].double()
        return Block(FactoredInverse(matrix + earlier.T @ earlier), chosen)

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`."""
        super().prepare(layer, weight, moment)
        self._matrices.pop(layer, None)  # of another model


class Block:
    """Inverse of a principal block, zero outside of it.

    Args:
        inner: inverse of the block ``[s, s]``.
        chosen_S: indices of its rows in the whole matrix, ``[s]``.
    """

    def __init__(self, inner: Inverse, chosen_S: Tensor) -> None:
        self.inner, self.chosen = inner, chosen_S

    def __call__(self, columns_IN: Tensor) -> Tensor:
        """See :class:`lit_edit.algebra.inverses.Inverse`."""
        columns = columns_IN.double()
        out = torch.zeros_like(columns)
        out[self.chosen] = self.inner(columns[self.chosen])
        return out


def basis_of(columns_IK: Tensor) -> Tensor:
    """An orthonormal basis of the span of some columns that are at most of length 1, ``[d_in, k]``."""
    u, s, _ = torch.linalg.svd(columns_IK, full_matrices=False)
    basis: Tensor = u[:, s > 1e-6]
    return basis
