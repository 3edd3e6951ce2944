"""Efficacy against preservation: does a guard move the front, or only move along it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_edit.figures import figure
from lit_edit.studies.base import Result
from lit_edit.studies.fronts import hypervolume
from lit_edit.studies.measures import Measure, Scoring
from lit_edit.studies.panels import bars, legend, look
from lit_edit.studies.seeds import Estimate, over_seeds
from lit_edit.studies.streams import Base, having
from lit_edit.studies.sweep import Sweep


class Pareto(Sweep):
    """Sweeps an editor's own dial (lambda) under every guard, and compares what is preserved at equal efficacy.

    A guard lowers efficacy and preserves more, and so does a larger lambda. Whether it is worth having shows only where both
    are equally effective: ``lead`` is the mean distance of a guard's front from that of the first one (no guard), see
    :func:`lit_edit.studies.fronts.lead`, once for every seed; its interval says whether it can be told from zero. Guards of as
    many random directions are the control for *which* directions are protected.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        lams: values of the dial.
        guards: by name, the value of ``model.guards``; the first one is what the others are compared with.
        dial: the option that ``lams`` are values of.
        seeds: everything runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which efficacy.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no value or no guard, a value is given twice, or several seeds would give the same run.
    """

    question = "Does a guard move the front of efficacy against preservation, or only move along the one that lambda draws?"

    def __init__(
        self,
        base: Base,
        lams: list[float],
        guards: dict[str, Any],
        dial: str = "model.editor.init_args.lam",
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, lams, guards, dial, seeds, options, scoring, unrelated, keep_checkpoints)

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Every setting; then lead over the first guard and hypervolume of every front."""
        rows = [row for measure in self.measures() for row in self.settings(results, measure, {})]
        rows += [row for wanted in self.measures()[1:] for row in self.leads(results, wanted, {})]
        for wanted in self.measures()[1:]:
            for guard in self.guards:
                areas = [hypervolume(points) for points in self.fronts(results, guard, wanted).values()]
                if areas:
                    found = over_seeds(areas, (0.0, float("inf")))
                    rows.append({"measure": f"hypervolume, {wanted.name}", "guard": guard, "lambda": "front", **found.row()})
        return rows

    # ------------------------------------------------------------------------------------------------ drawing

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """The fronts of both preservations, and the lead of every guard."""
        made, (first, second, third) = figure(10.4, 3.9, 1, 3)
        for panel, wanted in zip((first, second), self.measures()[1:], strict=True):
            self._draw_front(panel, results, wanted)
        self._draw_lead(third, results)
        sure = next((row["95 % over"] for row in self.table(results) if row["95 % over"] != "-"), "one run")
        legend(made, self.guards, 4, f"points: values of lambda; bars: 95 % over {sure}")
        return {"pareto": made}

    def _draw_front(self, panel: Axes, results: Mapping[str, Result], preserved: Measure) -> None:
        efficacy = self.measures()[0]
        for index, guard in enumerate(self.guards):
            found = []
            for lam in self.lams:
                runs = having(results, guard=guard, lam=lam)
                x, y = efficacy.estimate(runs), preserved.estimate(runs)
                if x.value is not None and y.value is not None:
                    found.append((lam, x, y))
            if not found:
                continue
            across, up = [x for _, x, _ in found], [y for _, _, y in found]
            _mark(panel, [one.at for one in across], up, across, **look(index), elinewidth=0.7)
            if index == 0:
                for lam, x, y in found:
                    panel.annotate(f"{lam:g}", (x.at, y.at), (4, 4), textcoords="offset points", fontsize=7, color="#444444")
        panel.set_xlabel(efficacy.label)
        panel.set_title(preserved.label, loc="left", fontsize=8.5)
        panel.tick_params(labelsize=8)
        panel.margins(0.08)

    def _draw_lead(self, panel: Axes, results: Mapping[str, Result]) -> None:
        panel.axhline(0.0, color="#444444", linewidth=1.0)
        known = False
        for index, guard in enumerate(self.guards[1:], start=1):
            for at, wanted in enumerate(self.measures()[1:]):
                found = self.lead(results, guard, wanted)
                if found.value is not None:
                    known = True
                    x = at + 0.16 * (index - len(self.guards) / 2)
                    _mark(panel, [x], [found], **{**look(index), "linestyle": "none"}, capsize=3)
        if not known:
            panel.text(0.5, 0.55, "no efficacy in common", transform=panel.transAxes, ha="center", fontsize=8, color="#444444")
        panel.set_xticks([0, 1], [measure.name for measure in self.measures()[1:]])
        panel.set_xlim(-0.6, 1.6)
        panel.set_title(f"lead over {self.guards[0]} at equal efficacy", loc="left", fontsize=8.5)
        panel.tick_params(labelsize=8)
        panel.margins(y=0.15)


def _mark(panel: Axes, x: Sequence[float], up: Sequence[Estimate], across: Sequence[Estimate] = (), **style: Any) -> None:
    """Points with their intervals upwards and, if given, sidewards."""
    panel.errorbar(x, [one.at for one in up], yerr=bars(up), xerr=bars(across) if across else None, **style)
