"""Condition number and size of the accumulated change: what sequential editing does to the weights under each guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lit_edit.studies.base import Result
from lit_edit.studies.collapse import last_values
from lit_edit.studies.measures import Measure, Scoring, abilities, drift, edits
from lit_edit.studies.panels import panels_over_edits
from lit_edit.studies.streams import Arm, Base, StreamStudy, by_method


class Condition(StreamStudy):
    r"""Follows :math:`\kappa(W_t) = \sigma_1 / \sigma_{min}`, the change :math:`W_t - W_0` and the abilities beside them.

    PRUNE (arXiv 2405.16821) explains collapse by the condition number of the edited matrix, which grows with the number of
    edits. Curves and table show the largest value over the edited layers; measures that a run did not log are left out.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        arms: by name, what each changes of it, e.g. ``{REVIVE: {model.guards: guards/revive.yaml}}``.
        seeds: every arm runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which efficacy.
        unrelated: probe that is no ability.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if there is no arm, or several seeds would give the same run.
    """

    question = "How do condition number and norm of the accumulated change grow with the edits, and what do guards change?"

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
        return [
            drift("condition_number", "condition number of $W_t$", log=True, of="max"),
            drift("delta_condition_number", "condition number of $W_t - W_0$", log=True, of="max"),
            drift("sigma_max", r"largest singular value of $W_t$", of="max"),
            drift("delta_sigma_max", r"largest singular value of $W_t - W_0$", of="max"),
            drift("delta_norm", r"$\|W_t - W_0\|_F$", 0.0, of="max"),
            drift("relative_norm", r"$\|W_t\|_F / \|W_0\|_F$", 1.0, of="max"),
            drift("stable_rank", r"stable rank of $W_t$", of="max"),
            drift("effective_rank", r"effective rank of $W_t$", of="max"),
            drift("delta_stable_rank", r"stable rank of $W_t - W_0$", of="max"),
            drift("delta_effective_rank", r"effective rank of $W_t - W_0$", of="max"),
            edits("efficacy", self.scoring),  # a guard that lets nothing through has the calmest weights
            abilities(self.unrelated),
        ]

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Last values by measure and method; 95 % over seeds is a t-interval."""
        return last_values(by_method(results), self.measures())

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """One panel a measure."""
        return {"condition": panels_over_edits(by_method(results), self.measures(), columns=3)}
