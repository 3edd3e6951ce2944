"""Charts against the number of edits, a line for every run: scores, abilities, weights, guards, targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from xml.etree.ElementTree import Element

from lit_edit.report.charts import Series, legend, line_chart
from lit_edit.report.markup import Child, details, node, note, section, table
from lit_edit.report.numbers import number, plain, title
from lit_edit.report.run import Run
from lit_edit.runs.run_folder import Curve

X = "edits written"
_EDITS = ("efficacy", "paraphrase", "neighbourhood", "portability", "locality", "score")
_SCORINGS = ("accuracy", "success", "agreement")
_COLLAPSE = {"relative_norm": "norm / norm of the original", "ls": "1 = unturned", "ss": "1 = unturned"}
_RATES = ("accuracy", "success", "agreement", "exact", "contains", "token_accuracy", "probability")
_MOST = 36


def layered(curves: Mapping[str, Curve], family: str) -> dict[str, dict[int, Curve]]:
    """Curves named ``<family>/<measure>/layer_<i>``, by measure and layer.

    Example:
        >>> layered({"drift/ls/layer_3": [(10, 0.5)], "target/loss": [(10, 1.0)]}, "drift")
        {'ls': {3: [(10, 0.5)]}}
    """
    found: dict[str, dict[int, Curve]] = {}
    for name, curve in curves.items():
        match = re.fullmatch(rf"{family}/(.+)/layer_(\d+)", name)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = curve
    return {measure: dict(sorted(layers.items())) for measure, layers in found.items()}


def mean_of_layers(layers: Mapping[int, Curve]) -> Curve:
    """One curve: the mean over the layers, of the batches at which all of them were looked at.

    Example:
        >>> mean_of_layers({0: [(10, 1.0), (20, 2.0), (20, 4.0)], 1: [(10, 3.0), (20, 2.0)]})
        [(10, 2.0), (20, 2.0)]
    """
    # A rejected batch adds no edits, so one number of edits can stand for several batches: the how-manieth tells them apart.
    looks: dict[tuple[int, int], list[float]] = {}
    for curve in layers.values():
        seen: Counter[int] = Counter()
        for edits, value in curve:
            looks.setdefault((edits, seen[edits]), []).append(value)
            seen[edits] += 1
    return [(edits, fmean(values)) for (edits, _), values in sorted(looks.items()) if len(values) == len(layers)]


def span(runs: Sequence[Run]) -> tuple[float, float]:
    """Ends of the x axis that all charts of the page share."""
    written = max((record["edits"] for run in runs for record in run.journal), default=0)
    return 0.0, float(max(written, *(run.summary["edits"] for run in runs)) or 1)


def collapse(runs: Sequence[Run]) -> Element | None:
    """What a stream does to edits, abilities and weights: a line for every run; ``None`` if nothing was measured."""
    several = [name for run in runs for name, curve in run.validations.items() if len(curve) > 1]  # one point is no curve
    names = list(dict.fromkeys(several))
    edits = [name for scoring in _SCORINGS for metric in _EDITS for name in names if name.startswith(f"{metric}/{scoring}/")]
    probes = [name for name in names if name.startswith("probe/")]
    ends = span(runs)
    charts: list[Element | None] = []
    for name in [*edits, *probes][:_MOST]:
        series = [Series(r.label, r.validations.get(name, []), at, r.bounds.get(name, [])) for at, r in enumerate(runs)]
        what, unit = _told(name, [value for one in series for _, value in one.points])
        charts.append(line_chart(what, series, X, unit, ends, _whole(unit)))
    for measure, unit in _COLLAPSE.items():
        curves = [mean_of_layers(layered(run.batches, "drift").get(measure, {})) for run in runs]
        series = [Series(run.label, curve, at) for at, (run, curve) in enumerate(zip(runs, curves, strict=True))]
        charts.append(line_chart(f"{title(measure)}, mean of the layers", series, X, unit, ends, scale(measure)))
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    left = len(edits) + len(probes) - _MOST
    remarks: list[Child] = [
        note(
            "Edits: at 0 the unedited model, at the end of a finished run all edits on the final weights, between them a "
            "sample of the edits so far; shaded: 95 % interval over records. Long curves keep the extremes of every stretch."
        )
    ]
    lost = [f"{plain(name)} of {run.label} after {', '.join(f'{at:,}' for at in edits[:5])} edits"
            for run in runs for name, edits in run.folder.undefined.items()]  # fmt: skip
    if lost:
        remarks.append(note(f"No number came out (overflow, or nothing to divide by): {'; '.join(lost[:10])}."))
    if left > 0:
        remarks.append(note(f"{left} more numbers were measured than are drawn; the tables have all of them."))
    return section("Along the stream", "stream", _legend(runs), grid(drawn), *remarks, _numbers(runs, [*edits, *probes]))


def solving(runs: Sequence[Run]) -> Element | None:
    """Targets, size of the changes, and what guards took away: a line for every run."""
    charts = []
    for name, unit in (("target/probability", "mean of the new answer (0 to 1)"), ("target/loss", "nats")):
        series = [Series(run.label, run.batches.get(name, []), at) for at, run in enumerate(runs)]
        told = f"{title(name.split('/')[1])} that targets reach"
        charts.append(line_chart(told, series, X, unit, span(runs), _whole(unit)))
    for family in ("delta", "guard"):
        found = [layered(run.batches, family) for run in runs]
        for measure in dict.fromkeys(name for one in found for name in one):
            series = [Series(run.label, mean_of_layers(one.get(measure, {})), at)
                      for at, (run, one) in enumerate(zip(runs, found, strict=True))]  # fmt: skip
            what = f"change: {plain(measure)}" if family == "delta" else measure.replace("/", ": ").replace("_", " ")
            unit = "Frobenius norm" if "norm" in measure else "share" if "share" in measure or "overlap" in measure else "value"
            charts.append(line_chart(f"{title(what)}, mean of the layers", series, X, unit, span(runs), scale(measure)))
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    return section("Batch by batch", "batches", _legend(runs), grid(drawn))


def _whole(unit: str) -> tuple[float, float] | None:
    """The y axis of a number whose unit says that it lies in 0 to 1."""
    return (0.0, 1.0) if unit.endswith("(0 to 1)") else None


def scale(measure: str) -> tuple[float, float] | None:
    """The y axis of a measure that has one of its own: rounding errors of an intact direction must not fill a chart.

    Example:
        >>> scale("ls_left"), scale("REVIVE/removed_share"), scale("norm")
        ((0.0, 1.0), (0.0, 1.0), None)
    """
    last = measure.split("/")[-1]
    if last == "triple_drift":
        return 0.0, 0.01
    if last.startswith("angle_"):
        return 0.0, 90.0
    return (0.0, 1.0) if re.match(r"(ls|ss)(_|$)", last) or "share" in last or "overlap" in last else None


def _legend(runs: Sequence[Run]) -> Element | None:
    return legend([(run.label, at) for at, run in enumerate(runs)]) if len(runs) > 1 else None


def grid(charts: Sequence[Element]) -> Element:
    """Charts beside each other, as many as there is room for."""
    return node("div", *charts, class_="grid-of-charts")


def _told(name: str, values: Sequence[float]) -> tuple[str, str]:
    """Title and unit of what a validation measured."""
    parts = name.split("/")
    items = "items" if parts[0] == "probe" else "records"
    metric, *how = parts[1:] if parts[0] == "probe" else parts
    scoring = how[0] if how else ""
    told = ", ".join([title(metric), *(plain(part) for part in how if part != "teacher_forced")])
    if scoring in _RATES and all(0 <= value <= 1 for value in values):
        return told, "harmonic mean (0 to 1)" if metric == "score" else f"mean over {items} (0 to 1)"
    return told, plain(scoring)


def _numbers(runs: Sequence[Run], names: Sequence[str]) -> Element | None:
    """The same as a table, for those who read rather than look."""
    made = []
    for run in runs:
        here = [name for name in names if run.validations.get(name)]
        edits = sorted({at for name in here for at, _ in run.validations[name]})
        values = {name: dict(run.validations[name]) for name in here}
        rows = [[f"{at:,}", *(number(values[name].get(at)) for name in here)] for at in edits]
        if rows:
            made.append(table(run.label, [X, *(_told(name, [])[0] for name in here)], rows, range(len(here) + 1)))
    return details("The same as numbers", *made) if made else None
