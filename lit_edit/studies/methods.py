"""Editors with and without guards: what each method keeps, and what each guard adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_edit.errors import EditError
from lit_edit.figures import figure
from lit_edit.studies.base import Result
from lit_edit.studies.collapse import collapse_rows, last_values
from lit_edit.studies.measures import Measure, Scoring, abilities, drift, measures
from lit_edit.studies.panels import bars, draw, dress, legend, look, share_x
from lit_edit.studies.seeds import Estimate, band_is, over_seeds
from lit_edit.studies.streams import Arm, Base, Options, StreamStudy, having

GUARDS = "model.guards"
_COMPARED = ("efficacy", "paraphrase", "neighbourhood", "unrelated facts", "abilities")


class Methods(StreamStudy):
    """Runs one stream under every method with every guard behind it.

    ``gain`` is what a guard adds to a method: its runs against those of the same method under the first of ``guards``, seed by
    seed, with a t-interval over seeds. At the same setting of a method a guard usually preserves more and edits less; whether
    a stronger setting buys the same is asked by :class:`lit_edit.studies.pareto.Pareto`.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        methods: by name, what each changes of it; a method that is a guard itself (RECT, PRUNE) lists it in ``model.guards``.
        guards: by name, the guards behind those of the method, as lists of classes; the first is what the others are compared
            with, usually none: ``[]``.
        seeds: everything runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which editing scores are shown.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no method or no guard, a list of guards is no list, or several seeds would give the same run.
    """

    question = "What does every method keep over a stream, and what does a guard add to it?"

    def __init__(
        self,
        base: Base,
        methods: dict[str, dict[str, Any]],
        guards: dict[str, list[Any]],
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, options, keep_checkpoints)
        if not guards:
            raise EditError("the study 'methods' was given no guards; name at least one, e.g. {no guard: []}")
        self.methods, self.guards, self.scoring, self.unrelated = list(methods), list(guards), scoring, unrelated
        arms: dict[str, Options] = {}
        places = {}
        for guard, behind in guards.items():
            for method, said in methods.items():
                own = said.get(GUARDS) or []
                if not isinstance(own, list):
                    raise EditError(f"{GUARDS} of the method {method!r} is {own!r}; a list of classes is needed here, no file")
                name = method if guard == self.guards[0] else f"{method} + {guard}"
                arms[name] = {**said, GUARDS: [*own, *behind] or None}
                places[name] = {"base_method": method, "guard": guard}
        self._arms = self.repeated(arms, [0] if seeds is None else seeds, places)

    def arms(self) -> Sequence[Arm]:
        """Every method with every guard under every seed."""
        return self._arms

    def measures(self) -> list[Measure]:
        """Rows of the table: all panels of a stream, condition number, and what an edit costs."""
        condition = drift("condition_number", "condition number", of="max")
        return [*measures(self.unrelated, self.scoring), condition, _SECONDS]

    def compared(self) -> list[Measure]:
        """What guards are compared in."""
        return [one for one in measures(self.unrelated, self.scoring) if one.name in _COMPARED]

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Last values and collapse points by method and guard, then the gains."""
        rows = []
        for guard in self.guards:
            groups = {method: runs for method in self.methods if (runs := self._runs(results, method, guard))}
            found = [*last_values(groups, self.measures()), *collapse_rows(groups, abilities(self.unrelated))]
            rows += [{"measure": row.pop("measure"), "method": row.pop("method"), "guard": guard, **row} for row in found]
        for measure in self.compared():
            for guard in self.guards[1:]:
                for method in self.methods:
                    gain = self.gain(results, method, guard, measure)
                    if gain.value is not None:
                        rows.append({"measure": f"gain in {measure.name}", "method": method, "guard": guard, **gain.row()})
        return rows

    def gain(self, results: Mapping[str, Result], method: str, guard: str, measure: Measure) -> Estimate:
        """What a guard adds to a method's last value, seeds compared with themselves."""
        with_it, without = (self._by_seed(results, method, name, measure) for name in (guard, self.guards[0]))
        return over_seeds([with_it[seed] - without[seed] for seed in with_it if seed in without])

    def _by_seed(self, results: Mapping[str, Result], method: str, guard: str, measure: Measure) -> dict[int, float]:
        runs = self._runs(results, method, guard)
        return {one["about"]["seed"]: value for one in runs if (value := measure.last(one)) is not None}

    def _runs(self, results: Mapping[str, Result], method: str, guard: str) -> list[Result]:
        return having(results, base_method=method, guard=guard)

    # ------------------------------------------------------------------------------------------------ drawing

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """``methods``: the end of the stream, a mark for every method and guard; ``courses``: the way there."""
        return {"methods": self._ends(results), "courses": self._courses(results)}

    def _ends(self, results: Mapping[str, Result]) -> Figure:
        shown = [*self.compared(), drift("relative_norm", "norm of weights [of unedited]")]
        made, axes = figure(2.1 * len(shown) + 1.0, 0.42 * len(self.methods) + 1.3, 1, len(shown))
        for at, (panel, measure) in enumerate(zip(axes, shown, strict=True)):
            for index, guard in enumerate(self.guards):
                self._mark(panel, measure, results, guard, index)
            panel.set_title(measure.label, loc="left", fontsize=8.5)
            panel.set_yticks(range(len(self.methods)), self.methods if at == 0 else [""] * len(self.methods))
            panel.set_ylim(len(self.methods) - 0.5, -0.5)
            panel.tick_params(labelsize=8)
            panel.grid(axis="y", linewidth=0.4, alpha=0.5)
            if measure.name != "relative norm":
                panel.set_xlim(-0.04, 1.04)
        seeds = len({arm.about["seed"] for arm in self._arms})
        title = f"end of the stream; bars: 95 % over {seeds} seeds" if seeds > 1 else "end of the stream"
        legend(made, self.guards, 4, title, self._there(results))
        return made

    def _mark(self, panel: Axes, measure: Measure, results: Mapping[str, Result], guard: str, index: int) -> None:
        for row, method in enumerate(self.methods):
            found = measure.estimate(self._runs(results, method, guard))
            if found.value is None:
                continue
            y = row + 0.22 * (index - (len(self.guards) - 1) / 2)
            panel.errorbar([found.value], [y], xerr=bars([found]), elinewidth=0.8, **{**look(index), "linestyle": "none"})

    def _courses(self, results: Mapping[str, Result]) -> Figure:
        kept = [one for one in self.compared() if one.name not in ("paraphrase", "neighbourhood")]
        shown = [*kept, drift("relative_norm", "norm [of unedited]", 1.0)]
        made, axes = figure(2.1 * len(self.methods) + 0.3, 1.6 * len(shown) + 0.9, len(shown), len(self.methods))
        for at, panel in enumerate(axes):
            measure, method = shown[at // len(self.methods)], self.methods[at % len(self.methods)]
            for index, guard in enumerate(self.guards):
                draw(panel, [measure.curve(one) for one in self._runs(results, method, guard)], index)
            dress(panel, measure)
            panel.set_title("", loc="left")  # the row has its name at the left
            panel.set_title(method if at < len(self.methods) else "", fontsize=8.5)
            panel.set_ylabel(measure.label if at % len(self.methods) == 0 else "", fontsize=8)
            if at >= len(axes) - len(self.methods):
                panel.set_xlabel("edits written", fontsize=8)
        share_x(axes)
        runs = max((len(self._runs(results, m, g)) for m in self.methods for g in self.guards), default=0)
        legend(made, self.guards, 4, band_is(runs), self._there(results))
        return made

    def _there(self, results: Mapping[str, Result]) -> list[str]:
        """Guards with which anything has run yet."""
        return [guard for guard in self.guards if having(results, guard=guard)]


_SECONDS = Measure(
    "seconds per edit",
    "seconds per edit",
    lambda result: [(int(result["edits"]), float(result["seconds_per_edit"]))],
    bounds=(0.0, float("inf")),
)
