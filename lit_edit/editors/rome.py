"""ROME: rank-one model editing, as published and with the repaired keys of R-ROME and p-ROME.

Legend: N = requests (one), J = rows of a request (1 + contexts), I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_edit.algebra.inverses import Inverse, Ridge, moment_inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.anatomy import Anatomy
from lit_edit.batch.finite import finite
from lit_edit.batch.rejection import solving
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.locate import LocateThenEdit, required
from lit_edit.errors import EditError
from lit_edit.keys import KeyPass
from lit_edit.parallel.sharding import gathered
from lit_edit.prompts import EditRows
from lit_edit.solver import Within
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench

_LEAST_COSINE = 1e-6
r"""Keys come in float32, so below this a cosine between key and direction is rounding.

An averaged key never gets there: :math:`\cos(k, C^{-1} k) \ge 2 \sqrt\kappa / (1 + \kappa)`, which is 2e-5 for the largest
condition number :math:`\kappa` that the floor of :class:`lit_edit.algebra.inverses.SpectralInverse` leaves.
"""


@dataclass(frozen=True)
class Reading:
    """What one request reads at the edited layer, float32."""

    toward_NI: Tensor
    r"""Key :math:`\bar k` that decides the direction."""
    keys_NI: Tensor
    """Key ``k`` that is to write the target."""
    output_NO: Tensor
    """Output ``y`` of the down-projection that belongs to ``keys_NI``."""
    bare_NO: Tensor
    """The same for the bare prompt."""


class ROME(LocateThenEdit):
    r"""One fact, one layer, one rank: the change that makes a key write its target at least cost to the other keys.

    .. math::
        \Delta = v u^T, \qquad u = \frac{A^{-1} \bar k}{\|A^{-1} \bar k\|}, \qquad
        v = \frac{v^* - y}{\langle k, u \rangle}, \qquad \Delta k = v^* - y

    with :math:`\bar k` ``[d_in]`` the mean of the keys over the bare prompt and all contexts (each row counts the same), ``k``
    ``[d_in]`` and ``y`` ``[d_out]`` the key and the down-projection's output, :math:`v^*` the bare prompt's output plus the
    optimised change, and ``A`` the second moment ``C`` ``[d_in, d_in]`` (``adjust``) or the identity. The requests of a batch
    are applied in order, each on the model that the one before has left; nothing is carried from one to the next.

    ======== ===================== =============== ============================================================
    method   options               ``k, y`` from   remark
    ======== ===================== =============== ============================================================
    ROME     (default)             bare prompt     ``<k, u>`` may come close to 0, and the change then explodes
    R-ROME   ``same_key=True``     mean over rows  ``<k, u>`` > 0; ``v* - y`` also holds the bare output minus ``y``
    p-ROME   ``prompt_key=True``   bare prompt     the bare key gives the direction as well
    ======== ===================== =============== ============================================================

    With a key common to both places this is :func:`lit_edit.solver.solve` with ``mu = 0``.

    Targets count from the MLP's output, which bounds and scales the optimised change; where a norm follows the MLP
    (Gemma 2/3) from that norm's output, and the change is brought back through it by
    :meth:`lit_edit.anatomy.Anatomy.pull_back`.

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 2; R-ROME and p-ROME: Gupta et al. 2024, arXiv 2403.07175. The released code
    inverts ``C`` explicitly in float32, this applies its inverse in float64: the released ``u``
    carries that rounding, a relative 1e-3 at a condition number of 1e6.

    Args:
        adjust: ``A = C`` (``mom2_adjustment``; true for GPT-2-XL and GPT-J, false in the published Llama-3-8B settings);
            otherwise ``A = I``, and no second moments are collected.
        same_key: R-ROME (``enable_random_prefix_keys``).
        prompt_key: p-ROME (``enable_prompt_keys``).

    Raises:
        EditError: if both ``same_key`` and ``prompt_key`` are set.
    """

    in_order = True

    def __init__(self, adjust: bool = True, same_key: bool = False, prompt_key: bool = False) -> None:
        super().__init__()
        if same_key and prompt_key:
            raise EditError(
                "ROME's same_key and prompt_key are both true; the key is either averaged (same_key) or the bare one"
            )
        self.adjust, self.same_key, self.prompt_key = adjust, same_key, prompt_key
        self.needs_moments = adjust
        self._start: dict[int, Inverse] = {}
        self._layer: int | None = None

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`; there is no state.

        Raises:
            EditError: for a second layer.
        """
        if self._layer not in (None, layer):
            raise EditError(
                f"ROME edits one layer, but layers {self._layer} and {layer} are to be edited; "
                "name a single block index with --model.layers"
            )
        self._layer = layer

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; factors the second moment once."""
        if not self.adjust:
            self._start[layer] = Ridge(1.0)
            return
        mean = required(moment, "ROME", layer, weight.shape[1]).mean
        self._start[layer] = moment_inverse(mean.to(weight.device), scale=1.0)

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`LocateThenEdit.targets`; what the MLP should add to the residual stream."""
        (layer,) = bench.layers
        bare = [replace(row, rewriting=row.rewriting[:1]) for row in rows]
        _, outputs_NJO = bench.reader(bare).rows(layer)
        return bench.optimise(rows, layer, origin_ND=added(bench.anatomy, layer, outputs_NJO[:, 0]))

    def read(self, reader: KeyPass, layer: int) -> Reading:
        """Keys and outputs of the layer, averaged or not as this variant has it."""
        inputs_NJI, outputs_NJO = reader.rows(layer)
        bare, output = inputs_NJI[:, 0], outputs_NJO[:, 0]
        mean = inputs_NJI.mean(1)
        if self.same_key:
            return Reading(mean, mean, outputs_NJO.mean(1), output)
        return Reading(bare if self.prompt_key else mean, bare, output, output)

    @torch.no_grad()
    def walk(self, bench: Workbench, rows: Sequence[EditRows], targets_ND: Tensor) -> dict[int, Tensor]:
        """See :meth:`LocateThenEdit.walk`; ``targets_ND`` is what the MLP should add to the residual stream."""
        (layer,) = bench.layers
        seen = self.read(bench.reader(rows), layer)
        residuals = missing(bench.anatomy, layer, seen, targets_ND)
        finite(f"the residuals of layer {layer}", residuals)
        bench.note(f"delta/residual_norm/layer_{layer}", float(residuals.norm(dim=1).mean()))
        with solving(f"the solve of layer {layer}"):
            delta = self.solve(layer, seen.keys_NI, residuals, bench.weight(layer), bench.avoid(layer), seen.toward_NI)
        bench.write(layer, delta)
        return {layer: seen.keys_NI}

    def solve(
        self,
        layer: int,
        keys: Tensor,
        residuals: Tensor,
        weight: Tensor,
        avoid: Subspace | None = None,
        toward: Tensor | None = None,
    ) -> Delta:
        r"""See :meth:`LocateThenEdit.solve`, for one request.

        Directions to avoid leave the problem as in :meth:`LeastSquaresEditor.solve`:
        :math:`k, \bar k \to \Pi_d k, \Pi_d \bar k`, :math:`v^* - y \to \Pi_m (v^* - y)`, :math:`A \to \Pi_d A \Pi_d`.

        Args:
            layer: index of the transformer block.
            keys: ``k``, ``[1, d_in]``.
            residuals: ``v* - y``, ``[1, d_out]``.
            weight: the weight before this change, ``[d_out, d_in]``, float32.
            avoid: directions the solution must stay out of; ``None`` for none.
            toward: key that decides the direction ``u``, ``[1, d_in]``; default: ``keys``.

        Returns:
            Float64 factors of rank one: ``v`` ``[d_out, 1]`` and ``u`` ``[1, d_in]`` with norm 1.

        Raises:
            EditError: for more than one request, or if ``k`` has no part along ``u``.
        """
        if len(keys) != 1:
            raise EditError(f"ROME solves for one request at a time, and was given {len(keys)}")
        inverse = self._start[layer]
        residual_O1 = residuals.double().T
        key_I1 = full_I1 = keys.double().T
        toward_I1 = key_I1 if toward is None else toward.double().T
        if avoid is not None:
            residual_O1 = remove_columns(residual_O1, avoid.left)
            if avoid.right.shape[1]:
                key_I1, toward_I1 = remove_columns(key_I1, avoid.right), remove_columns(toward_I1, avoid.right)
                inverse = Within(inverse, avoid.right)
        u_I1 = inverse(toward_I1)
        u_I1 = u_I1 / u_I1.norm()
        reached = float(key_I1.T @ u_I1)
        # Written so that NaN is refused as well.
        if not abs(reached) > _LEAST_COSINE * float(full_I1.norm()):
            raise EditError(
                f"the key of layer {layer} has almost no part along the direction that may be written ({reached:.3g} of a norm "
                f"of {float(full_I1.norm()):.3g}), so that only an enormous change would write the target"
            )
        return Delta.low_rank(residual_O1 / reached, u_I1.T)


def added(anatomy: Anatomy, layer: int, output_NO: Tensor) -> Tensor:
    """What the MLP adds to the residual stream where its down-projection puts this out, ``[n, d_out]`` both."""
    if anatomy.after_mlp_name is None:
        return output_NO
    norm = anatomy.blocks[layer].get_submodule(anatomy.after_mlp_name)
    with torch.no_grad(), gathered(anatomy.blocks[layer]):
        normed: Tensor = norm(output_NO.to(anatomy.dtype)).float()
    return normed


def missing(anatomy: Anatomy, layer: int, seen: Reading, targets_ND: Tensor) -> Tensor:
    """What the key has to write in addition, ``[n, d_out]``.

    Args:
        anatomy: the model.
        layer: the edited block.
        seen: keys and outputs.
        targets_ND: what the MLP should add to the residual stream at the bare prompt, ``[n, hidden]``.
    """
    change = anatomy.pull_back(layer, seen.bare_NO, targets_ND - added(anatomy, layer, seen.bare_NO))
    return change + (seen.bare_NO - seen.output_NO)
