"""Sweeps of an editor's own dial under several guards: is a guard more than another value of the dial?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_edit.errors import EditError
from lit_edit.studies.base import Result
from lit_edit.studies.fronts import lead
from lit_edit.studies.measures import Measure, Scoring, abilities, edits, probe
from lit_edit.studies.seeds import Estimate, over_seeds
from lit_edit.studies.streams import Arm, Base, Options, StreamStudy, having


class Sweep(StreamStudy):
    """Base of the studies that run every value of a dial under every guard, on one model or on several.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        lams: values of the dial.
        guards: by name, the value of ``model.guards``; the first one is what the others are compared with.
        dial: the option that ``lams`` are values of.
        seeds: everything runs once for each; ``None`` for the seed 0.
        options: changes for all arms.
        scoring: which efficacy.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.
        models: by name, what each changes of the base; ``None`` edits that of the base, and no arm says ``model``.

    Raises:
        EditError: if there is no value, guard or model, a value is given twice, or several seeds would give the same run.
    """

    def __init__(
        self,
        base: Base,
        lams: list[float],
        guards: Mapping[str, Any],
        dial: str,
        seeds: list[int] | None,
        options: Mapping[str, Any] | None,
        scoring: Scoring,
        unrelated: str,
        keep_checkpoints: bool,
        models: Mapping[str, Options] | None = None,
    ) -> None:
        super().__init__(base, options, keep_checkpoints)
        if not lams or len(set(lams)) != len(lams):
            raise EditError(f"the values {lams} of {dial} must be at least one, and none of them twice")
        self.lams, self.guards, self.scoring, self.unrelated = lams, list(guards), scoring, unrelated
        methods: dict[str, Options] = {}
        places = {}
        for model, changes in ({"": {}} if models is None else models).items():
            where = {} if models is None else {"model": model}
            for guard, value in guards.items():
                for lam in lams:
                    name = ", ".join([*where.values(), guard, f"{dial.rsplit('.', 1)[-1]} {lam:g}"])
                    methods[name] = {**changes, "model.guards": value, dial: lam}
                    places[name] = {**where, "guard": guard, "lam": lam}
        self._arms = self.repeated(methods, [0] if seeds is None else seeds, places)

    def arms(self) -> Sequence[Arm]:
        """Every guard with every value of the dial under every seed, on every model."""
        return self._arms

    def measures(self) -> list[Measure]:
        """Efficacy, then what is preserved."""
        return [edits("efficacy", self.scoring), probe(self.unrelated, "unrelated facts"), abilities(self.unrelated)]

    def settings(
        self, results: Mapping[str, Result], measure: Measure, columns: Mapping[str, Any], **where: Any
    ) -> list[dict[str, Any]]:
        """Rows of a table: a measure at the end for every guard and value of the dial that has been run ``where``."""
        rows = []
        for guard in self.guards:
            for lam in self.lams:
                found = measure.estimate(having(results, guard=guard, lam=lam, **where))
                if found.value is not None:
                    rows.append({"measure": measure.name, **columns, "guard": guard, "lambda": f"{lam:g}", **found.row()})
        return rows

    def leads(
        self, results: Mapping[str, Result], preserved: Measure, columns: Mapping[str, Any], **where: Any
    ) -> list[dict[str, Any]]:
        """Rows of a table: the lead of every guard over the first one, where it is known."""
        found = {guard: self.lead(results, guard, preserved, **where) for guard in self.guards[1:]}
        about = {"measure": f"lead in {preserved.name}", **columns}
        return [{**about, "guard": g, "lambda": "front", **one.row()} for g, one in found.items() if one.value is not None]

    def lead(self, results: Mapping[str, Result], guard: str, preserved: Measure, **where: Any) -> Estimate:
        """How much more a guard preserves than the first one at equal efficacy, seeds compared with themselves."""
        mine, reference = (self.fronts(results, name, preserved, **where) for name in (guard, self.guards[0]))
        found = [lead(points, reference[seed]) for seed, points in mine.items() if seed in reference]
        return over_seeds([one for one in found if one is not None])

    def fronts(
        self, results: Mapping[str, Result], guard: str, preserved: Measure, **where: Any
    ) -> dict[int, list[tuple[float, float]]]:
        """Efficacy and preservation of every value of the dial, by seed; seeds that lack one are left out."""
        efficacy = self.measures()[0]
        found: dict[int, list[tuple[float, float]]] = {}
        for one in having(results, guard=guard, **where):
            x, y = efficacy.last(one), preserved.last(one)
            if x is not None and y is not None:
                found.setdefault(one["about"]["seed"], []).append((x, y))
        return {seed: points for seed, points in found.items() if len(points) == len(self.lams)}
