"""What a run is judged by: curves of its scores, abilities and drift, and how sure their last values are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_edit.runs.run_folder import Curve
from lit_edit.studies.base import Result
from lit_edit.studies.seeds import Estimate, over_seeds

Scoring = Literal["success", "accuracy", "probability"]
"""``success``: the wanted answer is likelier than the other one; ``accuracy``: every token of it is the argmax;
``probability``: its mean probability. All teacher-forced."""

RATE = (0.0, 1.0)
"""Bounds of a rate."""

COLLAPSED = 0.5
"""A model has collapsed when less than this share of its abilities is left."""


@dataclass(frozen=True)
class Measure:
    """One panel, one line of a table.

    Args:
        name: in tables.
        label: on an axis, with the unit.
        curve: over the number of edits, of the result of a run; empty where the run did not measure it.
        sure: interval of the last value over records.
        bounds: that the value cannot leave; ``None``: those of a rate if no run has a value outside them.
        log: drawn on a logarithmic axis.
        collapsed: below this the model counts as collapsed; drawn as a level.
    """

    name: str
    label: str
    curve: Callable[[Result], Curve]
    sure: Callable[[Result], tuple[float, float] | None] = lambda result: None
    bounds: tuple[float, float] | None = (-math.inf, math.inf)
    log: bool = False
    collapsed: float | None = None

    def last(self, result: Result) -> float | None:
        """The value at the end of a run, if it is a number."""
        curve = self.curve(result)
        return curve[-1][1] if curve else None

    def estimate(self, results: Sequence[Result]) -> Estimate:
        """Mean at the end with its 95 % interval: over seeds, or of a single run over records where that is known."""
        values = [value for value in map(self.last, results) if value is not None and math.isfinite(value)]
        if len(results) == 1 and values and (bounds := self.sure(results[0])) is not None:
            return Estimate(values[0], *bounds, "records")
        if self.bounds is not None:
            return over_seeds(values, self.bounds)
        rate = all(value is None or 0 <= value <= 1 for one in results for _, value in self.curve(one))
        return over_seeds(values, RATE if rate else (-math.inf, math.inf))


def edits(metric: str, scoring: str) -> Measure:
    """Score of the edits made so far (of all of them at the end): efficacy, paraphrase or neighbourhood."""
    name = f"{metric}/{scoring}/teacher_forced"

    def curve(result: Result) -> Curve:
        points: Curve = result["validations"].get(name, [])
        return points

    def sure(result: Result) -> tuple[float, float] | None:
        found = [result["intervals"].get(f"edit/{protocol}/{name}") for protocol in ("final", "so_far")]
        return next((_pair(bounds) for bounds in found if bounds and None not in bounds), None)

    return Measure(metric, f"{metric}, {scoring} [share]", curve, sure, RATE)


def probe(name: str, label: str) -> Measure:
    """A probe by its own number."""

    def curve(result: Result) -> Curve:
        points: Curve = result["validations"].get(_shown(result, name), [])
        return points

    def sure(result: Result) -> tuple[float, float] | None:
        change, here = result["changes"].get(_shown(result, name)), curve(result)
        if not change or None in change or not here:
            return None
        return here[0][1] + change[0], here[0][1] + change[1]

    return Measure(label, f"{label} [share]", curve, sure, None)


def abilities(unrelated: str) -> Measure:
    """Mean over all probes but ``unrelated`` of what is left of each, the unedited model being 1."""
    curve, sure = partial(_mean_ability, apart=unrelated), partial(_sure, apart=unrelated)
    return Measure("abilities", "abilities [of unedited]", curve, sure, (0.0, math.inf), collapsed=COLLAPSED)


def drift(
    measure: str, label: str, start: float | None = None, log: bool = False, of: Literal["mean", "max"] = "mean"
) -> Measure:
    """A measure of the weights, mean or largest over the edited layers.

    Args:
        measure: as it is logged, without ``drift/`` and the layer.
        label: on an axis.
        start: its value before the first edit, where that is known.
        log: drawn on a logarithmic axis.
        of: how layers are joined.
    """

    def curve(result: Result) -> Curve:
        layers = [dict(found) for name, found in result["batches"].items() if name.startswith(f"drift/{measure}/")]
        if not layers:
            return []
        joined: Curve = [] if start is None else [(0, start)]
        for at in sorted(set.intersection(*map(set, layers))):
            values = [layer[at] for layer in layers]
            joined.append((at, math.nan if None in values else max(values) if of == "max" else sum(values) / len(values)))
        return [(at, value) for at, value in joined if not math.isnan(value)]

    return Measure(measure.replace("_", " "), label, curve, log=log)


def measures(unrelated: str, scoring: str) -> list[Measure]:
    """What every comparison of streams looks at."""
    return [
        edits("efficacy", scoring),
        edits("paraphrase", scoring),
        edits("neighbourhood", scoring),
        probe(unrelated, "unrelated facts"),
        abilities(unrelated),
        drift("relative_norm", "norm of weights [of unedited]", 1.0),
        drift("ls", "LS, by order [1 = unturned]", 1.0),
        drift("ss", "SS, by order [1 = unturned]", 1.0),
        drift("ls_matched", "LS, matched [1 = unturned]", 1.0),
        drift("ss_matched", "SS, matched [1 = unturned]", 1.0),
    ]


def collapse_point(curve: Curve, share: float = COLLAPSED) -> int | None:
    """Number of edits at the first look at which a curve is below ``share``; ``None`` if it never is.

    Example:
        >>> collapse_point([(0, 1.0), (100, 0.7), (200, 0.4), (300, 0.6)]), collapse_point([(0, 1.0)])
        (200, None)
    """
    return next((int(at) for at, value in curve if value < share), None)


# ------------------------------------------------------------------------------------------------ abilities of one run


def _others(result: Result, apart: str) -> list[str]:
    """Probes that count as abilities: all but ``apart`` whose number before the first edit can be divided by."""
    found = []
    for name in result["probes"]:
        curve = result["validations"].get(_shown(result, name), [])
        if name != apart and curve and curve[0][0] == 0 and curve[0][1]:
            found.append(name)
    return found


def _left(result: Result, name: str, value: float) -> float:
    """What is left of an ability: the number relative to that of the unedited model, the other way round for a perplexity."""
    start: float = result["validations"][_shown(result, name)][0][1]
    if result["probes"][name]["higher_is_better"]:
        return value / start
    return start / value if value else math.inf


def _mean_ability(result: Result, apart: str) -> Curve:
    names = _others(result, apart)
    if not names:
        return []
    parts = []
    for name in names:
        shown = _shown(result, name)
        kept = {at: _left(result, name, value) for at, value in result["validations"][shown]}
        # What a broken model answers is no number: nothing is left.
        kept.update(dict.fromkeys(result["undefined"].get(shown, []), 0.0))
        parts.append(kept)
    common = sorted(set.intersection(*map(set, parts)))
    return [(at, sum(part[at] for part in parts) / len(parts)) for at in common]


def _sure(result: Result, apart: str) -> tuple[float, float] | None:
    """Interval of the mean over items: those of the probes, which are independent, joined as root of the sum of squares."""
    curve, names = _mean_ability(result, apart), _others(result, apart)
    below = above = 0.0
    for name in names:
        shown = _shown(result, name)
        change = result["changes"].get(shown)
        if not change or None in change:
            return None
        values = result["validations"][shown]
        now = _left(result, name, values[-1][1])
        ends = sorted(_left(result, name, values[0][1] + side) for side in change)
        below, above = below + (now - ends[0]) ** 2, above + (ends[1] - now) ** 2
    if not curve:
        return None
    mean = curve[-1][1]
    return mean - math.sqrt(below) / len(names), mean + math.sqrt(above) / len(names)


def _shown(result: Result, name: str) -> str:
    """Logged name of the number that stands for a probe."""
    shown: str = result["probes"].get(name, {}).get("shown", "")
    return shown


def _pair(bounds: Sequence[float]) -> tuple[float, float]:
    return bounds[0], bounds[1]
