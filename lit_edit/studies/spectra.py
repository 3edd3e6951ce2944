"""From which spectrum on does a guard pay? The same sweep of lambda on several models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_edit.errors import EditError
from lit_edit.figures import figure
from lit_edit.journal.book import open_book
from lit_edit.journal.model import Unedited
from lit_edit.spectrum import leading_share
from lit_edit.studies.base import Point, Result
from lit_edit.studies.measures import Measure, Scoring
from lit_edit.studies.panels import bars, legend, look
from lit_edit.studies.streams import Base, having
from lit_edit.studies.sweep import Sweep

_STEEPNESS = "leading_share"


class Spectra(Sweep):
    """Sweeps an editor's own dial on several models under every guard, and sets a guard's lead beside their spectra.

    A guard protects the leading singular directions. Where the spectrum is flat these are directions like all others; the
    steeper it is, the more of what the model can do should lie in them, and the more should a guard be worth. The study tells
    how steep every model is (:func:`lit_edit.spectrum.leading_share`, mean over the edited layers of the unedited model) and
    the ``lead`` of every guard over the first one at equal efficacy, see :class:`lit_edit.studies.pareto.Pareto`.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        models: by name, what each changes of it, e.g. ``{"width 128": {model.pretrained: checkpoints/world-128}}``.
        lams: values of the dial.
        guards: by name, the value of ``model.guards``; the first one is what the others are compared with.
        dial: the option that ``lams`` are values of.
        seeds: everything runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which efficacy.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no model, no value, or fewer than two guards, a value is given twice, or several seeds would give
            the same run.
    """

    question = "From which spectrum on does a guard keep more than a larger lambda keeps at equal efficacy?"

    def __init__(
        self,
        base: Base,
        models: dict[str, dict[str, Any]],
        lams: list[float],
        guards: dict[str, Any],
        dial: str = "model.editor.init_args.lam",
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, lams, guards, dial, seeds, options, scoring, unrelated, keep_checkpoints, models)
        if len(guards) < 2:
            raise EditError(
                f"the guards are {', '.join(guards) or 'none'}; at least two are needed, one to compare the others with"
            )
        self.models = list(models)
        self._steep: dict[str, float] = {}

    def measure(self, point: Point, device: torch.device, folder: Path) -> Result:
        """Run the arm; the result also tells how steep the spectra of its unedited model are."""
        result = super().measure(point, device, folder)
        model = point.settings["about"]["model"]
        if model not in self._steep:  # once for all arms of a model in this process
            shares = [leading_share(weight) for weight in Unedited.of(folder, open_book(folder).layers).original.values()]
            self._steep[model] = sum(shares) / len(shares)
        return {**result, _STEEPNESS: self._steep[model]}

    def steepness(self, results: Mapping[str, Result], model: str) -> float | None:
        """Share of the leading singular values of a model, if one of its runs has been measured."""
        found = having(results, model=model)
        return found[0][_STEEPNESS] if found else None

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Leads of every guard on every model; then every setting."""
        columns = {model: {"model": model, "leading 5 %": self.steepness(results, model)} for model in self.models}
        rows = []
        for model in self.models:
            for wanted in self.measures()[1:]:
                rows += self.leads(results, wanted, columns[model], model=model)
        for measure in self.measures():
            for model in self.models:
                rows += self.settings(results, measure, columns[model], model=model)
        return rows

    # ------------------------------------------------------------------------------------------------ drawing

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """Lead over steepness, a panel for each preservation."""
        made, panels = figure(8.4, 4.2, 1, 2)
        for panel, wanted in zip(panels, self.measures()[1:], strict=True):
            self._draw(panel, results, wanted)
        sure = next((row["95 % over"] for row in self.table(results) if row["95 % over"] != "-"), "one run")
        legend(made, self.guards, 4, f"a point: a model; bars: 95 % over {sure}", there=self.guards[1:])
        return {"spectra": made}

    def _draw(self, panel: Axes, results: Mapping[str, Result], wanted: Measure) -> None:
        panel.axhline(0.0, color="#444444", linewidth=1.0)
        for model in self.models:
            if (share := self.steepness(results, model)) is not None:
                at = (share, 0.02)
                panel.annotate(
                    model, at, (-2, 0), panel.get_xaxis_transform(), "offset points",
                    rotation=90, ha="right", va="bottom", fontsize=7, color="#666666",
                )  # fmt: skip
        for index, guard in enumerate(self.guards[1:], start=1):
            found = [(self.steepness(results, model), self.lead(results, guard, wanted, model=model)) for model in self.models]
            known = [(x, one) for x, one in found if x is not None and one.value is not None]
            known.sort(key=lambda at: at[0])
            if not known:
                continue
            estimates = [one for _, one in known]
            across = [x for x, _ in known]
            panel.errorbar(across, [one.at for one in estimates], yerr=bars(estimates), capsize=3, **look(index))
        panel.set_xlabel("leading 5 %: share of the sum of singular values", fontsize=8.5)
        panel.set_title(f"lead over {self.guards[0]} in {wanted.name}", loc="left", fontsize=8.5)
        panel.tick_params(labelsize=8)
        panel.locator_params("x", nbins=6)
        panel.margins(0.15)
