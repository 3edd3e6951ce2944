"""The same stream under several editors and guards: what lasts, what breaks, and after how many edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lit_edit.studies.base import Result
from lit_edit.studies.measures import Measure, Scoring, abilities, collapse_point, measures
from lit_edit.studies.panels import panels_over_edits
from lit_edit.studies.seeds import Estimate, over_seeds
from lit_edit.studies.streams import Arm, Base, StreamStudy, by_method


class Collapse(StreamStudy):
    """Runs one stream under several settings and follows edits, unrelated facts, abilities and the weights.

    The collapse point is the number of edits at the first validation at which the abilities' mean is below half of what the
    unedited model has (perplexities count the other way round).

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        arms: by name, what each changes of it, e.g. ``{MEMIT: {model.guards: null}}``.
        seeds: every arm runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which editing scores are shown.
        unrelated: probe of facts that nobody edited, which gets a panel of its own; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no arm, or several seeds would give the same run.
    """

    question = "What does the same stream of edits do to a model under several editors and guards, and when does it collapse?"

    def __init__(
        self,
        base: Base,
        arms: dict[str, dict[str, Any]],
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, options, keep_checkpoints)
        self.scoring, self.unrelated = scoring, unrelated
        self._arms = self.repeated(arms, [0] if seeds is None else seeds)

    def arms(self) -> Sequence[Arm]:
        """Every arm under every seed."""
        return self._arms

    def measures(self) -> list[Measure]:
        """Panels and rows."""
        return measures(self.unrelated, self.scoring)

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Last values by measure and method, then collapse points; 95 % over seeds is a t-interval."""
        groups = by_method(results)
        return [*last_values(groups, self.measures()), *collapse_rows(groups, abilities(self.unrelated))]

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """The collapse figure."""
        return {"collapse": panels_over_edits(by_method(results), self.measures())}


def last_values(groups: Mapping[str, Sequence[Result]], wanted: Sequence[Measure]) -> list[dict[str, Any]]:
    """One row for every measure and method that has it; ``unedited`` is the value before the first edit, where known."""
    rows = []
    for measure in wanted:
        for name, results in groups.items():
            found = measure.estimate(results)
            if found.value is None:
                continue
            starts = [curve[0][1] for one in results if (curve := measure.curve(one)) and curve[0][0] == 0]
            start = sum(starts) / len(starts) if starts else None
            rows.append({"measure": measure.name, "method": name, "unedited": start, **found.row()})
    return rows


def collapse_rows(groups: Mapping[str, Sequence[Result]], ability: Measure) -> list[dict[str, Any]]:
    """Collapse points: a mean only where every run collapsed, or it would be the mean of the unlucky ones."""
    rows = []
    for name, results in groups.items():
        curves = [curve for one in results if (curve := ability.curve(one))]
        points = [point for curve in curves if (point := collapse_point(curve)) is not None]
        if not curves:
            continue
        whole = bool(points) and len(points) == len(curves)
        found = over_seeds([float(point) for point in points], (0.0, float("inf"))) if whole else Estimate(None)
        row = {"measure": "collapse point [edits]", "method": name, "unedited": None, **found.row()}
        told = "never" if not points else f"{len(points)} of {len(curves)} runs"
        rows.append({**row, "collapsed": told})
    return rows
