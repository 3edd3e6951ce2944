"""``perturb``: which singular directions are fragile?

Legend: O = d_out, I = d_in, K = components of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.probes.base import Probe
from lit_edit.spectrum import Energy, energy_rank
from lit_edit.studies.base import Point, Result
from lit_edit.studies.drawing import Band, Line, ability_panel, probe_panels
from lit_edit.studies.matrices import Matrix, Which
from lit_edit.studies.weights import UNEDITED, WeightStudy


def energy_groups(sigma: Tensor, groups: int, energy: Energy = "sigma") -> list[range]:
    r"""Consecutive components by the energy that stands before them: every component is in exactly one group.

    Component i is in group g (from 0) if :math:`g/G \le \sum_{j<i} e_j / \sum_j e_j < (g+1)/G` with :math:`e = \sigma` or
    :math:`\sigma^2`: a component that lies across a boundary belongs to the group in which it begins. The first group of ten is
    what REVIVE protects at :math:`\tau = 0.1`. A component with more than 1/G of all energy may leave the groups behind it
    empty; components without energy are in none.

    Args:
        sigma: singular values, descending.
        groups: G, number of groups.
        energy: what is summed up.

    Example:
        >>> energy_groups(torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0]), 5)
        [range(0, 1), range(1, 1), range(1, 2), range(2, 4), range(4, 6)]
    """
    rank = int((sigma > 0).sum())
    bounds = [0, *(min(energy_rank(sigma, group / groups, energy), rank) for group in range(1, groups)), rank]
    return [range(first, last) for first, last in pairwise(bounds)]


def within(left_OK: Tensor, right_IK: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    r"""Random matrix inside the span of some directions, :math:`\Delta = U_g N V_g^T`, of a given Frobenius norm.

    Args:
        left_OK: directions of outputs, orthonormal columns.
        right_IK: directions of inputs, as many.
        norm: of the result.
        generator: draws N, standard normal ``[k, k]``, on the CPU.

    Returns:
        ``[d_out, d_in]``, float64, on the device of the directions.
    """
    count = left_OK.shape[1]
    inner_KK = torch.randn(count, count, generator=generator, dtype=torch.float64).to(left_OK.device)
    delta_OI = left_OK.double() @ inner_KK @ right_IK.double().T
    scale: Tensor = norm / delta_OI.norm()
    return delta_OI * scale


class Perturb(WeightStudy):
    r"""Add noise of one norm to every chosen matrix, in the singular directions of one energy group after the other.

    .. math:: W' = W + \Delta_g, \qquad \Delta_g = U_g N V_g^T, \qquad \|\Delta_g\|_F = s\, \|W\|_F

    with the groups of :func:`energy_groups`, N standard normal before it is scaled, and a strength s. Two controls of the same
    norm tell what the place of the noise does from what its shape does: noise in random directions, *as many* as the group has
    (a group of few directions gets all of the norm in a few), and noise in *all* entries (Gaussian ``[d_out, d_in]``). The same
    seed draws the same N at every strength. That equal-norm noise in the top group destroys GLUE and in low groups does not
    is reported in arXiv 2601.11042; its definition of the noise is not public, this one is ours.

    A matrix in which a group is empty stays as it is for that group; ``matrices`` in the table counts those that were changed.

    Args:
        pretrained: folder or hub id of the model.
        probes: its general abilities.
        strengths: s, norms of the noise in shares of the matrix's own Frobenius norm.
        seeds: draws of the noise.
        groups: number of energy groups; 10 are deciles.
        energy: energy is the sum of singular values (``sigma``, as REVIVE counts) or of their squares (``sigma2``).
        controls: measure the two controls as well.
        layers: blocks whose matrices are changed; null means every block, not only those that an editor would write into.
        matrices: which matrices of those blocks: ``down`` (MLP down-projections), ``mlp`` (every linear map of the MLPs) or
            ``all`` (every linear map, attention as well).
        revision: revision of a hub id.
        dtype: dtype that the model runs in; in a half precision, noise drowns in rounding where it is weak.
        resamples: bootstrap samples of the intervals.

    Raises:
        EditError: for a strength that is not positive, fewer than two groups, or where there is nothing to measure.
    """

    question = "Which singular directions are fragile: what does noise of equal norm do in each group of equal energy?"

    def __init__(
        self,
        pretrained: str,
        probes: list[Probe],
        strengths: list[float] = [0.5, 1.0],  # noqa: B006 (never changed)
        seeds: list[int] = [0, 1, 2],  # noqa: B006
        groups: int = 10,
        energy: Energy = "sigma",
        controls: bool = True,
        layers: list[int] | None = None,
        matrices: Which = "down",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        resamples: int = 500,
    ) -> None:
        super().__init__(pretrained, probes, layers, matrices, revision, dtype, resamples)
        if bad := [s for s in strengths if not 0 < s < float("inf")]:
            raise EditError(f"--strengths holds {bad[0]:g}; the norm of the noise is a positive share of the matrix's own")
        if groups < 2:
            raise EditError(f"--groups is {groups}; at least two groups are needed to compare")
        if not strengths or not seeds:
            raise EditError("there is nothing to measure; --strengths and --seeds need at least one value")
        self.strengths, self.seeds, self.groups = sorted(strengths), list(seeds), groups
        self.energy, self.controls = energy, controls

    def common(self) -> dict[str, Any]:
        """See :meth:`WeightStudy.common`; what the groups are belongs to it."""
        return {**super().common(), "groups": self.groups, "energy": self.energy}

    def points(self) -> Sequence[Point]:
        """The unedited model, then every group and control at every strength with every seed."""
        kinds = ["group", "matched"] if self.controls else ["group"]
        cases: list[tuple[str, int | None]] = [(kind, group) for kind in kinds for group in range(self.groups)]
        cases += [("everywhere", None)] if self.controls else []
        return [UNEDITED, *(self._point(*case, s, seed) for case in cases for s in self.strengths for seed in self.seeds)]

    def change(self, point: Point, matrix: Matrix) -> tuple[Tensor | None, dict[str, Any]]:
        """See :meth:`WeightStudy.change`."""
        what, weight_OI = point.settings, matrix.weight_OI
        norm = what["strength"] * matrix.norm
        generator = matrix.generator("perturb", what["kind"], what["group"], what["seed"])
        if what["kind"] == "everywhere":
            noise_OI = torch.randn(*weight_OI.shape, generator=generator).to(weight_OI.device).double()
            return weight_OI.double() + noise_OI * (norm / noise_OI.norm()), {"components": matrix.rank}
        group = energy_groups(matrix.spectrum.sigma, self.groups, self.energy)[what["group"]]
        if not group:
            return None, {"components": 0}
        if what["kind"] == "matched":
            left_OK, right_IK = (_random_directions(width, len(group), generator) for width in weight_OI.shape)
        else:
            own = slice(group.start, group.stop)
            left_OK, right_IK = matrix.spectrum.left[:, own], matrix.spectrum.right[:, own]
        noise_OI = within(left_OK.to(weight_OI.device), right_IK.to(weight_OI.device), norm, generator)
        return weight_OI.double() + noise_OI, {"components": len(group)}

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """One row per directions and strength: components (mean over matrices), scores as means over seeds, intervals."""
        ability = self.ability(results)
        if ability is None:
            return []
        rows = [{"directions": "unedited", **self.columns(ability, self.sampled(ability, [UNEDITED.key], results))}]
        for kind, group, strength, keys in self._cases():
            there = [key for key in keys if key in results]
            if not there:
                continue
            facts = [fact for key in there for fact in results[key]["matrices"]]
            changed = [fact for fact in facts if fact["changed"]]
            row = {
                "directions": {"group": "of the group", "matched": "random, as many", "everywhere": "all"}[kind],
                "energy": None if group is None else self.label(group),
                "strength": strength,
                "matrices": len(changed) // len(there),
                "components": sum(fact["components"] for fact in changed) / len(changed) if changed else 0,
                "seeds": len(there),
            }
            rows.append({**row, **self.columns(ability, self.sampled(ability, keys, results))})
        names = ["directions", "energy", "strength", "matrices", "components", "seeds"]
        return [{**dict.fromkeys(names), **row} for row in rows]

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """``ability``: what is retained against the group, with controls; ``probes``: the same for each probe by itself."""
        ability = self.ability(results)
        if ability is None:
            return {}
        lines, bands = [], []
        kinds = {"group": "in the group", "matched": "in as many random directions", "everywhere": "in all directions"}
        step = 0.3 / max(len(self.strengths) * 2 - 1, 1)
        for kind, said in kinds.items():
            for number, strength in enumerate(self.strengths):
                cases = [(group, keys) for k, group, s, keys in self._cases() if (k, s) == (kind, strength)]
                found = [(group, self.sampled(ability, keys, results)) for group, keys in cases]
                label = f"noise of {100 * strength:g} % of the norm {said}"
                if kind == "everywhere":
                    bands += [Band(label, number, samples) for _, samples in found if samples]
                    continue
                at = [(float(group or 0), samples) for group, samples in found if samples]
                shift = step * (2 * number + (kind == "matched")) - 0.15
                if at:
                    lines.append(Line(label, number, at, control=kind == "matched", shift=shift))
        sums = {"sigma": "sum of singular values", "sigma2": "sum of squared singular values"}[self.energy]
        x = f"directions of the noise, by their part of the cumulative {sums} (%)\n{self.subject}"
        own = [line for line in lines if not line.control]
        drawn = {
            "ability": ability_panel(ability, lines, x, "What is left after noise of equal norm in each energy group", bands),
            "probes": probe_panels(ability, own, "energy group (%)"),
        }
        for name, made in drawn.items():
            for panel in made.axes:
                every = 1 if name == "ability" and self.groups <= 12 else max(1, -(-self.groups // 5))
                ticks = range(0, self.groups, every)
                panel.set_xticks(list(ticks), [self.label(group).rstrip(" %") for group in ticks])
                panel.set_xlim(-0.5, self.groups - 0.5)
        return drawn

    def label(self, group: int) -> str:
        """The part of the cumulative energy that a group covers."""
        return f"{100 * group / self.groups:g}-{100 * (group + 1) / self.groups:g} %"

    def _cases(self) -> list[tuple[str, int | None, float, list[str]]]:
        """Kind, group, strength and points (one per seed) of every row."""
        found: dict[tuple[str, int | None, float], list[str]] = {}
        for point in self.points()[1:]:
            what = point.settings
            found.setdefault((what["kind"], what["group"], what["strength"]), []).append(point.key)
        return [(*case, keys) for case, keys in found.items()]

    def _point(self, kind: str, group: int | None, strength: float, seed: int) -> Point:
        where = "everywhere" if group is None else f"{kind} {self.label(group)}"
        settings = {"kind": kind, "group": group, "strength": float(strength), "seed": seed}
        return Point(f"{where}, strength {strength:g}, seed {seed}", settings)


def _random_directions(width: int, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal basis of a uniformly distributed subspace, ``[width, count]`` float64."""
    basis: Tensor = torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64)).Q
    return basis
