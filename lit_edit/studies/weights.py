"""Studies of weights: change some matrices of a model, look what is left of its general ability, and put them back.

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.models.identity import load_pretrained
from lit_edit.probes.base import Probe
from lit_edit.prompts import Encoder
from lit_edit.scoring import Scorer
from lit_edit.store import fingerprint
from lit_edit.studies.ability import Ability
from lit_edit.studies.base import Point, Result, Study
from lit_edit.studies.matrices import Matrix, Which, matrices_of, replaced

UNEDITED = Point("unedited", {"kind": "unedited"})
"""The point that every weight study measures first: what all others are compared with."""


class Loaded:
    """A model that is ready to be changed and scored.

    Args:
        model: as loaded.
        tokenizer: as loaded.
        layers: see :func:`matrices_of`.
        which: see :func:`matrices_of`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, layers: Sequence[int] | None, which: Which) -> None:
        model.eval().requires_grad_(False)
        self.anatomy = Anatomy.of(model)
        self.matrices = matrices_of(self.anatomy, layers, which)
        self.scorer = Scorer(self.anatomy, Encoder(tokenizer, self.anatomy.positions))
        self.weights = fingerprint({matrix.name: matrix.weight_OI for matrix in self.matrices})


class WeightStudy(Study):
    """Base of the studies that change weights of a model without any edit and score what is left.

    A worker loads the model once. Each matrix is decomposed once (see :func:`lit_edit.spectrum.decompose`) and its
    singular vectors are kept in main memory in float32, ``4 (d_out + d_in) min(d_out, d_in)`` bytes each, beside a copy of
    what is changed at the moment: for the 32 down-projections of a Llama-3-8B in float32 about 10 and 7.5 GB, for all of its
    matrices about 42 and 28 GB. With less memory, choose fewer ``layers``.

    Args:
        pretrained: folder or hub id of the model.
        probes: its general abilities.
        layers: blocks whose matrices are changed; null means every block, not only those that an editor would write into.
        matrices: which matrices of those blocks: ``down`` (MLP down-projections), ``mlp`` (every linear map of the MLPs) or
            ``all`` (every linear map, attention as well).
        revision: revision of a hub id.
        dtype: dtype that the model runs in.
        resamples: bootstrap samples of the intervals.

    Raises:
        EditError: if there are no probes, two have one name, or there are too few resamples.
    """

    def __init__(
        self,
        pretrained: str,
        probes: list[Probe],
        layers: list[int] | None = None,
        matrices: Which = "down",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        resamples: int = 500,
    ) -> None:
        names = [probe.name for probe in probes]
        if not probes:
            raise EditError("--probes is empty; a study of weights needs at least one ability to look at")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EditError(f"--probes holds two probes called {twice[0]!r}; give one of them another name")
        if resamples < 20:
            raise EditError(f"--resamples is {resamples}; an interval needs at least 20 of them")
        self.pretrained, self.probes, self.layers, self.matrices = pretrained, list(probes), layers, matrices
        self.revision, self.dtype, self.resamples = revision, dtype, resamples
        self._loaded: Loaded | None = None
        self._samples: dict[str, Tensor] = {}

    def common(self) -> dict[str, Any]:
        """The model, the matrices and the probes with their items, which are read for that."""
        own = {"pretrained": self.pretrained, "revision": self.revision, "dtype": self.dtype}
        return {**own, "layers": self.layers, "matrices": self.matrices, "probes": [_told(probe) for probe in self.probes]}

    @abstractmethod
    def change(self, point: Point, matrix: Matrix) -> tuple[Tensor | None, dict[str, Any]]:
        """What a point makes of a matrix.

        Returns:
            The new weight ``[d_out, d_in]`` on the weight's device (``None``: as it is), and facts for the record, plain JSON.
        """

    @torch.no_grad()
    def measure(self, point: Point, device: torch.device, folder: Path) -> Result:
        """Score the probes on the changed model.

        Returns:
            ``rows`` of every probe, ``matrices`` (facts; ``change`` is what was really written,
            :math:`||W' - W||_F / ||W||_F`), ``weights`` (fingerprint of the unedited ones); ``rows`` is null where the point
            leaves every matrix as it is.
        """
        loaded = self._on(device)
        facts: list[dict[str, Any]] = []

        def new(matrix: Matrix) -> Tensor | None:
            weight_OI, found = self.change(point, matrix)
            written = 0.0
            if weight_OI is not None:
                weight_OI = weight_OI.to(matrix.weight_OI.dtype)
                written = float((weight_OI.double() - matrix.weight_OI.double()).norm()) / max(matrix.norm, 1e-300)
            facts.append({"name": matrix.name, **found, "change": written, "changed": weight_OI is not None})
            return weight_OI

        if point == UNEDITED:
            return {"rows": self.score(loaded, point), "matrices": facts, "weights": loaded.weights}
        with replaced(loaded.matrices, new):
            anything = any(fact["changed"] for fact in facts)
            return {"rows": self.score(loaded, point) if anything else None, "matrices": facts, "weights": loaded.weights}

    def _on(self, device: torch.device) -> Loaded:
        if self._loaded is None or self._loaded.anatomy.device != device:
            self._loaded = None  # room for the next one
            model, tokenizer = load_pretrained(self.pretrained, self.revision, getattr(torch, self.dtype))
            self._loaded = Loaded(model.to(device), tokenizer, self.layers, self.matrices)
        return self._loaded

    def score(self, loaded: Loaded, point: Point) -> dict[str, list[list[float]]]:
        """Rows of every probe on the model as it is; what else a study wants to know goes beside them."""
        found = {}
        for probe in self.probes:
            rows = probe.measure(loaded.scorer, probe.items())
            if not len(rows):
                raise EditError(f"the probe {probe.name} has no items; a study needs some to tell a change by")
            # Whole numbers as such: most rows are zeros and ones, and there are many of them.
            found[probe.name] = [[int(v) if v.is_integer() else v for v in row] for row in rows.tolist()]
        return found

    def ability(self, results: Mapping[str, Result]) -> Ability | None:
        """What the points are compared with, ``None`` while the unedited model is not measured.

        Raises:
            EditError: if the points were measured on different weights.
        """
        if len({result["weights"] for result in results.values()}) > 1:
            raise EditError(
                f"the points were measured on different weights, so {self.pretrained} has changed in between; "
                "choose another --run_dir"
            )
        start = results.get(UNEDITED.key)
        return None if start is None else Ability(self.probes, _tensors(start), self.resamples)

    def sampled(self, ability: Ability, keys: Sequence[str], results: Mapping[str, Result]) -> list[Tensor]:
        """Bootstrap samples of those of some points that are measured and changed anything."""
        there = [key for key in keys if key in results and results[key]["rows"] is not None]
        for key in there:
            if key not in self._samples:
                self._samples[key] = ability.sample(_tensors(results[key]))
        return [self._samples[key] for key in there]

    def columns(self, ability: Ability, samples: Sequence[Tensor]) -> dict[str, Any]:
        """The part of a table's row that every weight study has; nothing but names where nothing was measured."""
        if not samples:
            return dict.fromkeys(("ability", "ability_low", "ability_high", "ability_sd"))
        whole = ability.retained(samples)
        row = {"ability": whole.value, "ability_low": whole.low, "ability_high": whole.high}
        row["ability_sd"] = ability.spread(samples)
        numbers = {probe.name: ability.number(probe.name, samples) for probe in self.probes}
        row |= {name: number.value for name, number in numbers.items()}
        for name, number in numbers.items():  # behind the numbers themselves, which is what one looks at first
            row |= {f"{name}_low": number.low, f"{name}_high": number.high}
        return row

    @property
    def subject(self) -> str:
        """What was changed, for titles."""
        kind = {"down": "MLP down-projections", "mlp": "MLP matrices", "all": "matrices"}[self.matrices]
        where = "all blocks" if self.layers is None else f"blocks {', '.join(map(str, sorted(self.layers)))}"
        return f"{Path(self.pretrained).name}, {kind} of {where}"


def _tensors(result: Result) -> dict[str, Tensor]:
    missing = float("nan")  # JSON's null
    return {
        name: torch.tensor([[missing if v is None else v for v in row] for row in rows], dtype=torch.float64)
        for name, rows in result["rows"].items()
    }


def _told(probe: Probe) -> dict[str, Any]:
    """What makes a probe another one: its class, its plain settings, its items."""
    plain = {
        name: value
        for name, value in vars(probe).items()
        if not name.startswith("_") and (value is None or isinstance(value, (str, int, float)))
    }
    items = probe.items()
    digest = hashlib.sha256(repr(tuple(items)).encode()).hexdigest()[:16]
    return {"class": type(probe).__qualname__, **plain, "count": len(items), "items": digest}
