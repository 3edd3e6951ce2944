"""How far editing has turned and stretched the weights, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from lit_edit.algebra.drift import GROUPS
from lit_edit.report.charts import Series, legend, line_chart
from lit_edit.report.curves import X, grid, layered, scale, span
from lit_edit.report.markup import Child, details, node, note, section, table
from lit_edit.report.numbers import number, plain, title
from lit_edit.report.run import Run
from lit_edit.runs.run_folder import Curve

_OTHER = "other measures"
_UNITS = {
    "norm": "Frobenius norm of the weights",
    "relative_norm": "norm / norm of the original",
    "delta_norm": "Frobenius norm of the whole change",
    "last_delta_norm": "Frobenius norm of one batch's change",
    "sigma_max": "largest singular value of the weights",
    "delta_sigma_max": "largest singular value of the whole change",
    "last_delta_sigma_max": "largest singular value of one batch's change",
    "condition_number": "largest / smallest singular value",
    "delta_condition_number": "largest / smallest singular value",
    "delta_rank": "directions",
    "triple_drift": "0 = dominant triples intact",
    "protected_share": "share of the squared norm (0 to 1)",
    "key_memory_share": "share of earlier keys (0 to 1)",
}
_FAMILIES = {"ls": "1 = unturned", "ss": "1 = unturned", "angle": "degrees", "key": "cosine", "stable": "directions"}


def drift(runs: Sequence[Run]) -> Element | None:
    """A chart for every measure, a line for every layer; ``None`` if no run was looked at."""
    made: list[Child] = []
    for run in runs:
        parts = _of_run(run, layered(run.batches, "drift"), span(runs))
        if parts:
            made += parts if len(runs) == 1 else [details(run.label, *parts, opened=len(runs) <= 3)]
    if not made:
        return None
    said = note(
        "LS and SS compare the dominant singular subspace and vectors with the original ones, in order of size: new directions "
        "that outgrow the old ones lower them even while the old ones stay (triple drift 0)."
    )
    return section("Weights", "weights", *made, said)


def groups(measures: Sequence[str]) -> dict[str, list[str]]:
    """Measures under the headings they are shown under; those without one come last.

    Example:
        >>> groups(["ls", "norm", "mine"])
        {'size': ['norm'], 'dominant subspace': ['ls'], 'other measures': ['mine']}
    """
    known = {name for names in GROUPS.values() for name in names}
    found = {group: [name for name in names if name in measures] for group, names in GROUPS.items()}
    found[_OTHER] = [name for name in measures if name not in known]
    return {group: names for group, names in found.items() if names}


def unit(measure: str) -> str:
    """What the y axis of a measure says.

    Example:
        >>> unit("angle_max_left"), unit("ss"), unit("mine")
        ('degrees', '1 = unturned', 'mine')
    """
    if measure.endswith("_cosine"):
        return "cosine"
    return (
        _UNITS.get(measure) or _FAMILIES.get(measure.split("_")[0]) or ("directions" if "rank" in measure else plain(measure))
    )


def _of_run(run: Run, measures: Mapping[str, Mapping[int, Curve]], ends: tuple[float, float]) -> list[Child]:
    layers = sorted({layer for found in measures.values() for layer in found})
    lines = {layer: at for at, layer in enumerate(layers)}
    made: list[Child] = []
    for group, names in groups(list(measures)).items():
        charts = []
        for name in names:
            series = [Series(f"layer {layer}", curve, lines[layer]) for layer, curve in measures[name].items()]
            charts.append(line_chart(title(name), series, X, unit(name), ends, scale(name)))
        drawn = [chart for chart in charts if chart is not None]
        if drawn:
            made += [node("h3", title(group)), grid(drawn)]
    if not made:
        return []
    head = ["measure", *(f"layer {layer}" for layer in layers)]
    rows = [
        [title(name), *(number(measures[name][layer][-1][1] if measures[name].get(layer) else None) for layer in layers)]
        for names in groups(list(measures)).values()
        for name in names
    ]
    values = details("Last values", table(f"Last values of {run.label}", head, rows, range(1, len(head))))
    return [legend([(f"layer {layer}", at) for layer, at in lines.items()]), *made, values]
