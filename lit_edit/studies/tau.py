"""REVIVE's settings, one at a time: share, energy, basis, and cutting after the solve against solving inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lit_edit.errors import EditError
from lit_edit.figures import figure
from lit_edit.studies.base import Result
from lit_edit.studies.collapse import last_values
from lit_edit.studies.measures import Measure, Scoring, abilities, drift, edits, probe
from lit_edit.studies.panels import legend, look
from lit_edit.studies.streams import Arm, Base, Options, StreamStudy, by_method

UNGUARDED = "no guard"


class Tau(StreamStudy):
    """Varies one setting of the guard at a time around a default, and runs the stream without it for comparison.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from.
        taus: shares of the singular values to protect.
        default: the guard's settings where they are not varied, e.g. ``{tau: 0.1}``.
        variants: by name, settings that replace some of the default's, e.g. ``{compact: {basis: compact}}``.
        guard: the guard's class.
        seeds: every setting runs once for each; ``$seed`` in an option is replaced by it.
        options: changes for all arms.
        scoring: which editing scores are shown.
        unrelated: probe of facts that nobody edited; all other probes are abilities.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if ``default`` has no ``tau``, a name or share comes twice, or several seeds would give the same run.
    """

    question = "How do the protected share, the energy rule, the basis, and projecting against constraining change the outcome?"

    def __init__(
        self,
        base: Base,
        taus: list[float],
        default: dict[str, Any] | None = None,
        variants: dict[str, dict[str, Any]] | None = None,
        guard: str = "REVIVE",
        seeds: list[int] | None = None,
        options: dict[str, Any] | None = None,
        scoring: Scoring = "success",
        unrelated: str = "unrelated_facts",
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(base, options, keep_checkpoints)
        self.scoring, self.unrelated = scoring, unrelated
        settings = {"tau": 0.1} if default is None else default
        if "tau" not in settings:
            raise EditError("the study's default needs a tau, e.g. default: {tau: 0.1}")
        if len(set(taus)) != len(taus):
            raise EditError(f"the shares {taus} name one twice")
        self.shares = {f"tau {share:g}": share for share in sorted({*taus, settings["tau"]})}
        self.variants = list(variants or {})
        if taken := sorted({*self.variants} & {UNGUARDED, *self.shares}):
            raise EditError(f"a variant must not be called {taken[0]!r}, which another arm of the study is")
        init = {name: {**settings, "tau": share} for name, share in self.shares.items()}
        init.update({name: {**settings, **changed} for name, changed in (variants or {}).items()})
        methods: dict[str, Options] = {UNGUARDED: {"model.guards": None}}
        for name, args in init.items():
            methods[name] = {"model.guards": [{"class_path": guard, "init_args": args}]}
        self._arms = self.repeated(methods, [0] if seeds is None else seeds)

    def arms(self) -> Sequence[Arm]:
        """No guard, every share, every variant; under every seed."""
        return self._arms

    def measures(self) -> list[Measure]:
        """Panels; the table has the drift as well."""
        return [
            edits("efficacy", self.scoring),
            edits("paraphrase", self.scoring),
            edits("neighbourhood", self.scoring),
            probe(self.unrelated, "unrelated facts"),
            abilities(self.unrelated),
            drift("relative_norm", "norm of weights [of unedited]", 1.0),
        ]

    def table(self, results: Mapping[str, Result]) -> list[dict[str, Any]]:
        """Last values by measure and setting."""
        return last_values(by_method(results), self.measures())

    def figures(self, results: Mapping[str, Result]) -> dict[str, Figure]:
        """Every measure against the share; variants as single marks, no guard as a level."""
        groups, shares = by_method(results), list(self.shares.values())
        # Variants stand beside the curve, in the order of the legend: at their own share they would hide each other.
        step = 0.12 * max(shares[-1] - shares[0], 0.1)
        places = {name: shares[-1] + step * at for at, name in enumerate(self.variants, start=1)}
        made, panels = figure(9.0, 5.2, 2, 3)
        for panel, measure in zip(panels, self.measures(), strict=True):
            found = {name: measure.estimate(runs) for name, runs in groups.items()}
            known = {name: one for name, one in found.items() if one.value is not None}
            if UNGUARDED in known:
                panel.axhline(known[UNGUARDED].at, color=look(0)["color"], linewidth=1.2, linestyle="--")
            curve = [(share, known[name]) for name, share in self.shares.items() if name in known]
            if curve:
                at, low, high = [s for s, _ in curve], [e.ends[0] for _, e in curve], [e.ends[1] for _, e in curve]
                panel.plot(at, [one.at for _, one in curve], **look(1))
                panel.fill_between(at, low, high, color=look(1)["color"], alpha=0.18, linewidth=0)
            for index, (name, x) in enumerate(places.items(), start=2):
                if name in known:
                    below, above = known[name].at - known[name].ends[0], known[name].ends[1] - known[name].at
                    style = {**look(index), "linestyle": "none", "elinewidth": 0.8}
                    panel.errorbar([x], [known[name].at], yerr=[[max(below, 0.0)], [max(above, 0.0)]], **style)
            panel.axvline((shares[-1] + step / 2), color="#BBBBBB", linewidth=0.8)
            panel.set_xticks(shares, [f"{share:g}" for share in shares])
            panel.tick_params(labelsize=8)
            panel.set_title(measure.label, loc="left", fontsize=8.5)
            panel.margins(y=0.12)
        for panel in panels[3:]:
            panel.set_xlabel("protected share tau  |  variants", fontsize=8.5)
        counts = max(map(len, groups.values()), default=0)
        sure = f"95 % t-interval over {counts} seeds" if counts > 1 else "95 % over records, where known"
        legend(made, [UNGUARDED, "tau", *self.variants], 4, f"bands and bars: {sure}; dashed: no guard")
        return {"tau": made}
