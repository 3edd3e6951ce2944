"""``truncate``: how much general ability do a few singular components keep?

Legend: O = d_out, I = d_in, K = components kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.probes.base import Probe
from lit_edit.studies.base import Point, Result
from lit_edit.studies.drawing import Line, ability_panel, probe_panels
from lit_edit.studies.matrices import Matrix, Which
from lit_edit.studies.weights import UNEDITED, WeightStudy

Keep = Literal["top", "bottom", "random"]


def kept(rank: int, percent: float) -> int:
    r"""Number of components that p % of them are: :math:`k = \lceil p\, r / 100 \rceil`.

    Example:
        >>> kept(256, 5.0), kept(100, 7.0), kept(256, 0.0), kept(256, 100.0)
        (13, 7, 0, 256)
    """
    return math.ceil(round(rank * percent / 100, 9))  # 7 % of 100 are 7, and not 8 for a digit far behind the point


class Truncate(WeightStudy):
    r"""Replace every chosen matrix by some of its singular components.

    .. math:: W' = \sum_{i \in S} \sigma_i u_i v_i^T, \qquad |S| = \lceil p\, r / 100 \rceil

    where r is the rank of W (singular values above ``1e-7`` of the largest) and S holds its largest singular values (``top``),
    its smallest (``bottom``) or any (``random``; a larger S of the same seed contains the smaller ones). The percentage counts
    components, not energy, as the paper's does, of whose models the top 5 % keep 62.6 % of GLUE (arXiv 2601.11042).

    Args:
        pretrained: folder or hub id of the model.
        probes: its general abilities.
        percents: shares p of the components that are kept, in percent.
        keep: which components are kept.
        seeds: draws of the random components.
        layers: blocks whose matrices are cut; null means every block, not only those that an editor would write into.
        matrices: which matrices of those blocks: ``down`` (MLP down-projections), ``mlp`` (every linear map of the MLPs) or
            ``all`` (every linear map, attention as well).
        revision: revision of a hub id.
        dtype: dtype that the model runs in.
        resamples: bootstrap samples of the intervals.

    Raises:
        EditError: for a percentage outside [0, 100], or where there is nothing to measure.
    """

    question = "How much general ability do the top p % of the singular components keep, and the bottom or any p %?"

    def __init__(
        self,
        pretrained: str,
        probes: list[Probe],
        percents: list[float] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0],  # noqa: B006 (never changed)
        keep: list[Keep] = ["top", "bottom", "random"],  # noqa: B006
        seeds: list[int] = [0, 1, 2],  # noqa: B006
        layers: list[int] | None = None,
        matrices: Which = "down",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        resamples: int = 500,
    ) -> None:
        super().__init__(pretrained, probes, layers, matrices, revision, dtype, resamples)
        if bad := [p for p in percents if not 0 <= p <= 100]:
            raise EditError(f"--percents holds {bad[0]:g}; a share of the components lies between 0 and 100 %")
        if not percents or not keep or ("random" in keep and not seeds):
            raise EditError("there is nothing to measure; --percents, --keep and (for random components) --seeds need a value")
        self.percents, self.keep, self.seeds = sorted(percents), list(keep), list(seeds)

    def points(self) -> Sequence[Point]:
        """The unedited model, then every choice of components; all and none are the same whatever is chosen."""
        ends = [_point("top", p) for p in self.percents if p in (0, 100)]
        inner = [p for p in self.percents if p not in (0, 100)]
        seeds = {"random": self.seeds}
        return [
            UNEDITED,
            *ends,
            *(_point(keep, p, seed) for keep in self.keep for p in inner for seed in seeds.get(keep, [None])),
        ]

    def change(self, point: Point, matrix: Matrix) -> tuple[Tensor, dict[str, Any]]:
        """See :meth:`WeightStudy.change`."""
        what = point.settings
        index = components(matrix, what["keep"], what["percent"], what["seed"])
        spectrum, device = matrix.spectrum, matrix.weight_OI.device
        left_OK, right_IK = spectrum.left[:, index].to(device), spectrum.right[:, index].to(device)
        sigma = spectrum.sigma
        facts: dict[str, Any] = {"components": len(index), "rank": matrix.rank}
        facts |= {"sigma": _share(sigma, index), "sigma2": _share(sigma.square(), index)}
        return (left_OK * sigma[index].to(device).float()) @ right_IK.T, facts

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """One row per choice and percentage: components and shares of energy kept (means over matrices), scores, intervals."""
        ability = self.ability(results)
        if ability is None:
            return []
        rows = []
        for keep, percent, keys in self._cases():
            samples = self.sampled(ability, keys, results)
            if samples:
                facts = [fact for key in keys if key in results for fact in results[key]["matrices"]]
                own = {name: _mean(facts, name) for name in ("components", "sigma", "sigma2")}
                rows.append({"keep": keep, "percent": percent, **own, "seeds": len(samples), **self.columns(ability, samples)})
        return rows

    def _cases(self) -> list[tuple[str, float | None, list[str]]]:
        """Label, percentage and points of every row."""
        found: list[tuple[str, float | None, list[str]]] = [("unedited", None, [UNEDITED.key])]
        for point in self.points()[1:]:
            what = point.settings
            label = {0: "none", 100: "all"}.get(what["percent"], what["keep"])
            if found[-1][:2] == (label, what["percent"]):
                found[-1][2].append(point.key)
            else:
                found.append((label, what["percent"], [point.key]))
        return found

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """``ability``: what is retained against the percentage; ``probes``: the same for each probe by itself."""
        ability = self.ability(results)
        if ability is None:
            return {}
        lines = []
        for number, keep in enumerate(self.keep):
            at: list[tuple[float, list[Tensor]]] = []
            for label, percent, keys in self._cases()[1:]:
                if label in (keep, "none", "all") and (samples := self.sampled(ability, keys, results)):
                    assert percent is not None
                    at.append((percent, samples))
            spread = f", {len(self.seeds)} seeds" if keep == "random" else ""
            lines.append(Line(f"{keep} p %{spread}", number, sorted(at, key=lambda pair: pair[0])))
        x = f"singular components kept, p (%)\n{self.subject}"
        drawn = {
            "ability": ability_panel(ability, lines, x, "What is left when only some singular components are kept"),
            "probes": probe_panels(ability, lines, "singular components kept, p (%)"),
        }
        for made in drawn.values():
            for panel in made.axes:
                _percent_axis(panel, self.percents)
        return drawn


def components(matrix: Matrix, keep: str, percent: float, seed: int | None) -> Tensor:
    """Indices of the components that are kept, in ascending order; 0 is the largest."""
    rank, count = matrix.rank, kept(matrix.rank, percent)
    if keep == "top":
        return torch.arange(count)
    if keep == "bottom":
        return torch.arange(rank - count, rank)
    return torch.randperm(rank, generator=matrix.generator("truncate", seed))[:count].sort().values


def _point(keep: str, percent: float, seed: int | None = None) -> Point:
    drawn = "" if seed is None else f" seed {seed}"
    return Point(f"{keep} {percent:g} %{drawn}", {"keep": keep, "percent": float(percent), "seed": seed})


def _share(mass: Tensor, index: Tensor) -> float:
    return float(mass[index].sum() / mass.sum())


def _mean(facts: Sequence[Mapping[str, Any]], name: str) -> float | int | None:
    """Mean over matrices, whole where all agree; ``None`` for the unedited model."""
    values = [fact[name] for fact in facts]
    if not values:
        return None
    return values[0] if isinstance(values[0], int) and len(set(values)) == 1 else sum(values) / len(values)


def _percent_axis(panel: Any, percents: Sequence[float]) -> None:
    """A logarithmic axis (linear below the smallest percentage, for 0) with the percentages themselves as its ticks."""
    smallest = min((p for p in percents if p > 0), default=1.0)
    panel.set_xscale("symlog", linthresh=smallest)
    # Ticks that would print over each other are left out, from the right.
    ticks: list[float] = []
    for p in sorted(set(percents), reverse=True):
        if not ticks or p == 0 or p <= ticks[-1] / 1.45:
            ticks.append(p)
    panel.set_xticks(ticks, [f"{p:g}" for p in ticks], minor=False)
    panel.minorticks_off()
    panel.set_xlim(0 if 0 in percents else smallest * 0.85, max(*percents, smallest) * 1.15)
