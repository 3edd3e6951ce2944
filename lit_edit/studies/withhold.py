"""``withhold``: does the part of an edit that touches the dominant subspace do the damage?

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE, RandomSubspace
from lit_edit.journal.book import open_book
from lit_edit.journal.model import Named
from lit_edit.probes.base import AnswerProbe, Probe
from lit_edit.request import EditRequest
from lit_edit.studies.base import Point, Result
from lit_edit.studies.drawing import Line, ability_panel, probe_panels
from lit_edit.studies.matrices import Matrix
from lit_edit.studies.seeds import over_seeds
from lit_edit.studies.weights import UNEDITED, Loaded, WeightStudy

EFFICACY = "efficacy"
_LABELS = {"dominant": "without what touches the dominant directions", "random": "without what touches as many random ones",
           "shrunk": "all of it, shrunk to the same norm"}  # fmt: skip


class Withhold(WeightStudy):
    r"""Takes a part out of what finished runs have written, and looks what is left of the edits and of everything else.

    A guard works on every batch, and the stream goes on from what it leaves. Here the stream is over and its whole change
    :math:`\Delta = W_t - W_0` is cut once, so that nothing but the place of the cut differs:

    .. math:: W' = W_0 + (I - U_k U_k^T)\,\Delta\,(I - V_k V_k^T)

    with the dominant directions of :math:`W_0` that hold a share ``tau`` of its singular values (``dominant``, what
    :class:`lit_edit.guards.REVIVE` does), with as many random ones (``random``), and :math:`W' = W_0 + s\,\Delta` with s such
    that the change has the norm that the first leaves it (``shrunk``). If the dominant part does the damage, ``dominant``
    keeps more ability at the same efficacy than either control.

    Args:
        runs: run folders of ``lit-edit fit`` or points of a study of streams, with journals that hold the factors; several are
            draws of one experiment: the same model and layers.
        probes: general abilities of the model.
        taus: shares of the singular values that the directions hold.
        batches: look behind so many batches of every run; null takes all of them.
        energy: see :class:`lit_edit.guards.REVIVE`.
        side: see :class:`lit_edit.guards.REVIVE`.
        seeds: draws of the random directions.
        asked: at most this many of a run's edits are asked for, evenly spread.
        resamples: bootstrap samples of the intervals.

    Raises:
        EditError: if a run cannot be read, the runs are not of one model and its same layers, or there is nothing to measure.
    """

    question = "Does the part of what was written that touches the dominant directions do the damage?"

    def __init__(
        self,
        runs: list[str],
        probes: list[Probe],
        taus: list[float] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7],  # noqa: B006 (never changed)
        batches: int | None = None,
        energy: Literal["sigma", "sigma2"] = "sigma",
        side: Literal["both", "left", "right"] = "both",
        seeds: list[int] = [0],  # noqa: B006
        asked: int = 200,
        resamples: int = 500,
    ) -> None:
        if not runs or not taus or not seeds:
            raise EditError("there is nothing to measure; --runs, --taus and --seeds need at least one value")
        if asked < 1:
            raise EditError(f"--asked is {asked}; at least one edit of a run has to be asked for")
        self.books = [open_book(run) for run in runs]
        models = [Named.of(book.run) for book in self.books]
        made = {(str(model), tuple(book.layers)) for model, book in zip(models, self.books, strict=True)}
        if len(made) > 1:
            raise EditError(f"--runs are of different models or layers: {'; '.join(sorted(str(one) for one in made))}")
        model = models[0]
        super().__init__(model.pretrained, probes, self.books[0].layers, "down", model.revision, model.dtype, resamples)
        for tau in taus:
            REVIVE(tau=tau, energy=energy, side=side)  # refuses what is no share
        for book in self.books:
            book.upto(batches or 0)
        self.runs, self.taus, self.seeds, self.asked = list(runs), sorted(taus), list(seeds), asked
        self.counts = [batches or len(book.records) for book in self.books]
        self.energy, self.side = energy, side
        self._changes: tuple[int, dict[str, Tensor]] | None = None

    def common(self) -> dict[str, Any]:
        """See :meth:`WeightStudy.common`; the runs by the record that stands for all up to it."""
        heads = [book.records[count - 1]["sha256"] for book, count in zip(self.books, self.counts, strict=True)]
        return {**super().common(), "heads": heads, "energy": self.energy, "side": self.side, "asked": self.asked}

    def points(self) -> Sequence[Point]:
        """The unedited model; then, run by run, all that was written, and every part of it."""
        found = [UNEDITED]
        for run in range(len(self.runs)):
            found.append(_point("written", run))
            for tau in self.taus:
                found += [_point("dominant", run, tau), _point("shrunk", run, tau)]
                found += [_point("random", run, tau, seed) for seed in self.seeds]
        return found

    def change(self, point: Point, matrix: Matrix) -> tuple[Tensor, dict[str, Any]]:
        """See :meth:`WeightStudy.change`."""
        what = point.settings
        change_OI = self._change_of(what["run"])[matrix.name].to(matrix.weight_OI.device)
        if what["kind"] == "written":
            return matrix.weight_OI.double() + change_OI, {"rank": 0, "removed": 0.0}
        dominant = REVIVE(tau=what["tau"], energy=self.energy, side=self.side)
        spectrum = matrix.spectrum
        dominant.prepare(0, matrix.weight_OI, spectrum)
        protected = dominant.protected(0)
        rank = max(protected.left.shape[1], protected.right.shape[1])
        guard: REVIVE | RandomSubspace = dominant
        if what["kind"] == "random":
            guard = RandomSubspace(k=rank, seed=int(matrix.generator("withhold", what["seed"]).initial_seed()), side=self.side)
            guard.prepare(0, matrix.weight_OI, spectrum)
        left_OI = guard(0, Delta.from_dense(change_OI.float()), matrix.weight_OI).dense().double()
        removed = 1 - float(left_OI.norm() / change_OI.norm()) ** 2
        if what["kind"] == "shrunk":
            left_OI = change_OI * float(left_OI.norm() / change_OI.norm())
        return matrix.weight_OI.double() + left_OI, {"rank": rank, "removed": removed}

    def _change_of(self, run: int) -> dict[str, Tensor]:
        """What a run has written, ``[d_out, d_in]`` float64 by name of the matrix; one run is kept."""
        if self._changes is None or self._changes[0] != run:
            assert self._loaded is not None
            # Asked for by the first matrix of a point, when none of them is changed yet.
            matrices = dict(zip(self.books[run].layers, self._loaded.matrices, strict=True))
            original = {layer: matrix.weight_OI.float().clone().contiguous() for layer, matrix in matrices.items()}
            written = self.books[run].weights(original, self.counts[run])
            changes = {matrix.name: written[layer].double() - original[layer].double() for layer, matrix in matrices.items()}
            self._changes = run, changes
        return self._changes[1]

    def score(self, loaded: Loaded, point: Point) -> dict[str, list[list[float]]]:
        """See :meth:`WeightStudy.score`; the edits of the point's run beside the probes."""
        edits = self.edits(point.settings.get("run", 0))
        rows = edits.measure(loaded.scorer, edits.items())
        return {**super().score(loaded, point), EFFICACY: [[int(v) for v in row] for row in rows.tolist()]}

    def edits(self, run: int) -> AnswerProbe:
        """The edits of a run that are asked for: those that it wrote, up to the batches looked at."""
        records = self.books[run].records[: self.counts[run]]
        written = [request for record in records for request in record["requests"] if request["fate"] == "written"]
        if not written:
            raise EditError(f"the run {self.runs[run]} has written no request, so there is nothing to take out")
        step = max(1.0, len(written) / self.asked)
        chosen = [written[int(place * step)] for place in range(min(self.asked, len(written)))]
        requests = [EditRequest(one["prompt"], one["subject"], one["target"]) for one in chosen]
        return AnswerProbe(EFFICACY, [(request.text, request.target_new) for request in requests])

    # ------------------------------------------------------------------------------------------------ what came out

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """One row per part and tau: directions, share of the change's squared norm taken out, edits and abilities left."""
        ability = self.ability(results)
        if ability is None:
            return []
        rows = []
        for kind, tau, keys in self._cases():
            samples = self.sampled(ability, keys, results)
            if not samples:
                continue
            there = [key for key in keys if key in results]
            facts = [fact for key in there for fact in results[key]["matrices"] if "rank" in fact]
            mean = {name: sum(f[name] for f in facts) / len(facts) if facts else None for name in ("rank", "removed")}
            edits = over_seeds(self._efficacies(there, results), (0.0, 1.0))
            own = {"part": kind, "tau": tau, **mean, "runs": len({results[key]["run"] for key in there})}
            own |= {"efficacy": edits.value, "efficacy_low": edits.low, "efficacy_high": edits.high}
            rows.append({**own, **self.columns(ability, samples)})
        return rows

    def measure(self, point: Point, device: torch.device, folder: Path) -> Result:
        """See :meth:`WeightStudy.measure`; with the number of the run."""
        return {**super().measure(point, device, folder), "run": point.settings.get("run")}

    def _efficacies(self, keys: Sequence[str], results: Mapping[str, Result]) -> list[float]:
        """Of every run, mean over its draws of random directions."""
        by_run: dict[Any, list[float]] = {}
        for key in keys:
            rows = results[key]["rows"][EFFICACY]
            by_run.setdefault(results[key]["run"], []).append(sum(row[0] for row in rows) / len(rows))
        return [sum(own) / len(own) for own in by_run.values()]

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """``ability`` against the efficacy that is left, a line for every way to take something out; ``probes`` likewise."""
        ability = self.ability(results)
        if ability is None:
            return {}
        lines = []
        for number, (kind, label) in enumerate(_LABELS.items()):
            at = []
            for part, _, keys in self._cases():
                there = [key for key in keys if key in results]
                if part in (kind, "written") and (samples := self.sampled(ability, there, results)):
                    efficacies = self._efficacies(there, results)
                    at.append((sum(efficacies) / len(efficacies), samples))
            lines.append(Line(label, number, at, control=kind != "dominant"))
        x = f"efficacy that is left; each line begins at all that was written, at the right\n{self.subject}"
        title = "What is left when a part of the edits is taken out"
        return {"ability": ability_panel(ability, lines, x, title), "probes": probe_panels(ability, lines, "efficacy left")}

    def _cases(self) -> list[tuple[str, float | None, list[str]]]:
        """Part, tau and points of every row; parts stand together."""
        found: dict[tuple[str, float | None], list[str]] = {("unedited", None): [UNEDITED.key], ("written", None): []}
        found |= {(kind, tau): [] for kind in _LABELS for tau in self.taus}
        for point in self.points()[1:]:
            found[point.settings["kind"], point.settings["tau"]].append(point.key)
        return [(*case, keys) for case, keys in found.items()]


def _point(kind: str, run: int, tau: float | None = None, seed: int | None = None) -> Point:
    name = f"run {run}, {kind}" + ("" if tau is None else f" tau {tau:g}") + ("" if seed is None else f" seed {seed}")
    return Point(name, {"kind": kind, "run": run, "tau": tau, "seed": seed})
