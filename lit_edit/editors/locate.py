"""Locate-then-edit: targets at the subject's last token, then a closed form layer by layer.

Legend: N = requests, I = d_in, D = hidden size.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_edit.algebra.inverses import Inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.batch.finite import finite
from lit_edit.batch.rejection import solving
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.base import Editor
from lit_edit.prompts import EditRows
from lit_edit.solver import Within, solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench


class LocateThenEdit(Editor):
    r"""Editors that make keys write residuals.

    Targets ``Z`` are optimised at the last edited block; then, shallow to deep, each layer is asked to write an equal share of
    what is still missing there, :math:`R_i = (Z - z) / (L - i)`, read on the model with the earlier layers of this batch
    already changed (Meng et al. 2022, arXiv 2210.07229, algorithm 1).
    """

    in_order: bool = False
    """Whether the requests of a batch are applied one after another instead of in one solve."""

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """What the last edited block should put out at the subjects, ``[n, hidden]``."""
        return bench.optimise(rows)

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """The change that makes the keys write the residuals.

        Args:
            layer: index of the transformer block.
            keys: ``[n, d_in]``.
            residuals: ``[n, d_out]``.
            weight: the weight before this change, ``[d_out, d_in]``, float32.
            avoid: directions the solution must stay out of (a guard that constrains); ``None`` for none.
        """

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """Take note of what has been solved for.

        Args:
            layer: index of the transformer block.
            keys: ``[n, d_in]``, as given to :meth:`solve`.
            weight: the weight with the change written, ``[d_out, d_in]``, float32.
        """

    def aim(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets | None:
        """See :meth:`Editor.aim`; an editor that applies requests in order aims at each when its turn comes."""
        if self.in_order:
            return None
        warn_of_conflicts(rows)
        return self.targets(bench, rows)

    def change(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets | None) -> None:
        """See :meth:`Editor.change`."""
        if self.in_order:
            bench.each(rows, lambda one: self.settle(bench, one, self.targets(bench, one)))
            return
        assert aimed is not None
        self.settle(bench, rows, aimed)

    def settle(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets) -> None:
        """Write one solve over all layers, and remember it."""
        keys = self.walk(bench, rows, aimed.values_ND)
        bench.finish()
        for layer, keys_NI in keys.items():
            with solving(f"what {type(self).__name__} remembers of layer {layer}"):
                self.remember(layer, keys_NI, bench.weight(layer))
            bench.wrote_to(layer, keys_NI)

    @torch.no_grad()
    def walk(self, bench: Workbench, rows: Sequence[EditRows], targets_ND: Tensor) -> dict[int, Tensor]:
        """Solve layer by layer.

        Args:
            bench: the model, the weights and the guards.
            rows: rows of every request.
            targets_ND: what the last edited block should put out at the subjects, ``[n, hidden]``.

        Returns:
            Keys of every layer, ``[n, d_in]``.

        Raises:
            Rejected: if a key or residual is not finite.
        """
        reader = bench.reader(rows)
        found: dict[int, Tensor] = {}
        for index, layer in enumerate(bench.layers):
            bench.tell("layers", index + 1, len(bench.layers))
            keys = reader.keys(layer)
            residuals = (targets_ND - reader.values(bench.layers[-1])) / (len(bench.layers) - index)
            residuals = bench.anatomy.pull_back(layer, reader.written(), residuals)
            finite(f"the residuals of layer {layer}", residuals)
            bench.note(f"delta/residual_norm/layer_{layer}", float(residuals.norm(dim=1).mean()))
            found[layer] = keys
            with solving(f"the solve of layer {layer}"):
                delta = self.solve(layer, keys, residuals, bench.weight(layer), bench.avoid(layer))
            bench.write(layer, delta)
        return found


class LeastSquaresEditor(LocateThenEdit):
    r"""An editor that is :func:`lit_edit.solver.solve` with its own metric ``A``; see :meth:`metric`."""

    mu: float = 1.0

    @abstractmethod
    def metric(self, layer: int) -> Inverse:
        r"""Applies :math:`A^{-1}` of this editor at ``layer``."""

    def forbidden(self, layer: int) -> Tensor | None:
        """Orthonormal input directions ``[d_in, r]`` that this editor never writes into; ``None`` for none."""
        return None

    def weighting(self, keys: Tensor) -> float:
        """``mu`` for a batch with these keys ``[n, d_in]``."""
        return self.mu

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        r"""See :meth:`LocateThenEdit.solve`.

        Directions ``V`` that are forbidden or to be avoided leave the problem: with :math:`\Pi_d = I - V V^T` (and
        :math:`\Pi_m` on the output side), :math:`K \to \Pi_d K, R \to \Pi_m R, A \to \Pi_d A \Pi_d`.
        """
        inverse = self.metric(layer)
        closed = self.forbidden(layer)
        if avoid is not None:
            residuals = remove_columns(residuals.double().T, avoid.left).T
            closed = joined(closed, avoid.right)
        if closed is not None and closed.shape[1]:
            keys = remove_columns(keys.double().T, closed).T
            inverse = Within(inverse, closed)
        return solve(inverse, keys, residuals, self.weighting(keys))


def joined(basis_IR: Tensor | None, more_IK: Tensor) -> Tensor:
    """An orthonormal basis of the span of two orthonormal bases, float64."""
    more = more_IK.double()
    if basis_IR is None or not basis_IR.shape[1]:
        return more
    basis = basis_IR.double()
    rest = remove_columns(more, basis)
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    # Directions of `more` that the basis holds already leave only rounding behind.
    return torch.cat([basis, u[:, s > 1e-6]], dim=1)


def required(moment: SecondMoment | None, name: str, layer: int, d_in: int) -> SecondMoment:
    """The second moment, if it is there, belongs to this weight, and can be one.

    Raises:
        EditError: if it is missing, of another width, or no second moment (see :meth:`SecondMoment.check`).
    """
    from lit_edit.errors import EditError

    if moment is None:
        raise EditError(f"{name} needs the second moment of the keys of layer {layer}, and none was given")
    if tuple(moment.mean.shape) != (d_in, d_in):
        rows, columns = moment.mean.shape
        raise EditError(
            f"the second moment given to {name} for layer {layer} is {rows} x {columns}, but the weight reads {d_in} inputs: "
            "it belongs to another model"
        )
    moment.check(f"the second moment of layer {layer}")
    return moment


def warn_of_conflicts(rows: Sequence[EditRows]) -> None:
    """Warn of requests that one solve cannot tell apart: the same key, but another answer.

    A key is read at the subject's last token, so whatever a prompt says behind it does not matter. A solve with ``mu > 0``
    writes a compromise between such requests.
    """
    by_key: dict[tuple[tuple[int, ...], ...], list[EditRows]] = {}
    for row in rows:
        by_key.setdefault(tuple(part.ids for part in row.reading), []).append(row)
    for same in by_key.values():
        wanted = {(row.request.text, row.request.target_new) for row in same}
        if len(wanted) > 1:
            names = ", ".join(f"{row.request.name} ({row.request.target_new!r})" for row in same)
            warnings.warn(
                f"{len(same)} requests of one batch share a key but not an answer, so the solve writes a compromise: {names}",
                stacklevel=2,
            )
