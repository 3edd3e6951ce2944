"""The same facts in several orders: how much of a collapse is luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_edit.errors import EditError
from lit_edit.figures import figure
from lit_edit.studies.base import Result
from lit_edit.studies.collapse import collapse_rows, last_values
from lit_edit.studies.measures import COLLAPSED, Measure, Scoring, abilities, collapse_point, edits, probe
from lit_edit.studies.panels import draw, dress, legend, look
from lit_edit.studies.seeds import band_is
from lit_edit.studies.streams import Arm, Base, StreamStudy, by_method


class Order(StreamStudy):
    """Runs every method over one set of facts in several orders, and again with other sampled contexts.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from; it must not set ``data.limit``, which would cut other
            facts off in every order.
        arms: by name, what each changes of it.
        orders: seeds of the shuffled order (``data.seed``).
        seeds: of the sampled contexts (``model.seed``); every order runs once for each.
        options: changes for all arms.
        scoring: which editing scores are shown.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no arm, an order comes twice, or a limit would change the facts.
    """

    question = "How much do collapse point and scores depend on the order of the same edits?"

    def __init__(
        self,
        base: Base,
        arms: dict[str, dict[str, Any]],
        orders: list[int],
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, options, keep_checkpoints)
        self.scoring, self.unrelated = scoring, unrelated
        limit = self.options.get("data.limit", (self.common()["base"].get("data") or {}).get("limit"))
        if limit is not None:
            raise EditError(
                f"data.limit is {limit}, so that every order would cut off other facts; leave it out and give an edit set of "
                "that size"
            )
        if not orders:
            raise EditError("the study needs at least one order, e.g. orders: [0, 1, 2]")
        self._arms = []
        for seed in [0] if seeds is None else seeds:
            fixed = {
                name: {**options, "data.order": "shuffled", "data.seed": "$seed", "model.seed": seed}
                for name, options in arms.items()
            }
            for arm in self.repeated(fixed, orders):
                key = f"{arm.about['method']}, order {arm.about['seed']}" + (f", contexts {seed}" if seeds else "")
                self._arms.append(Arm(key, arm.options, {**arm.about, "contexts": seed}))

    def arms(self) -> Sequence[Arm]:
        """Every method in every order with every context seed."""
        return self._arms

    def measures(self) -> list[Measure]:
        """Panels and rows."""
        return [
            edits("efficacy", self.scoring),
            edits("paraphrase", self.scoring),
            probe(self.unrelated, "unrelated facts"),
            abilities(self.unrelated),
        ]

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Last values and collapse points, and the smallest and largest of each over the orders."""
        groups = by_method(results)
        rows = last_values(groups, self.measures())
        for row in rows:
            measure = next(one for one in self.measures() if one.name == row["measure"])
            values = [value for one in groups[row["method"]] if (value := measure.last(one)) is not None]
            row.update(smallest=min(values), largest=max(values))
        for row in collapse_rows(groups, self.measures()[-1]):
            points = [p for one in groups[row["method"]] if (p := collapse_point(self.measures()[-1].curve(one))) is not None]
            rows.append({**row, "smallest": min(points, default=None), "largest": max(points, default=None)})
        return rows

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """Every run thin, their mean thick, and the collapse points beside them."""
        groups = by_method(results)
        made, panels = figure(10.4, 3.6, 1, 3)
        shown = (self.measures()[0], self.measures()[-1])
        for panel, measure in zip(panels, shown, strict=False):
            for index, runs in enumerate(groups.values()):
                curves = [curve for one in runs if (curve := measure.curve(one))]
                for curve in curves:
                    panel.plot(*zip(*curve, strict=True), color=look(index)["color"], linewidth=0.5, alpha=0.5)
                draw(panel, curves, index)
            dress(panel, measure)
            panel.set_xlabel("edits written")
        panels[1].axhline(COLLAPSED, color="#444444", linewidth=0.8, linestyle=":")
        self._points(panels[2], groups)
        legend(made, list(groups), 4, band_is(max(map(len, groups.values()), default=0)))
        return {"order": made}

    def _points(self, panel: Any, groups: Mapping[str, Sequence[Result]]) -> None:
        ability, longest = self.measures()[-1], max((one["edits"] for runs in groups.values() for one in runs), default=1)
        never = longest * 1.12
        for index, runs in enumerate(groups.values()):
            found = [collapse_point(ability.curve(one)) for one in runs]
            for at, point in enumerate(found):
                x = index + 0.5 * ((at + 0.5) / len(found) - 0.5)
                face = look(index)["color"] if point is not None else "none"
                style = {"color": look(index)["color"], "marker": look(index)["marker"], "markerfacecolor": face}
                panel.plot([x], [never if point is None else point], linestyle="none", **style)
        panel.axhline(longest * 1.06, color="#444444", linewidth=0.8, linestyle=":")
        panel.set_ylim(0, longest * 1.2)
        ticks = [tick for tick in MaxNLocator(5, integer=True).tick_values(0, longest) if tick <= longest]
        panel.set_yticks([*ticks, never], [*(f"{tick:g}" for tick in ticks), "never"])
        panel.tick_params(labelsize=8)
        panel.set_xlim(-0.6, len(groups) - 0.4)
        panel.set_xticks([])
        panel.set_title("collapse point [edits]", loc="left", fontsize=8.5)
        panel.set_xlabel("method (one mark a run)")
