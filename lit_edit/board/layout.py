"""The charts of TensorBoard's Custom Scalars tab: what belongs together in one picture, what matters first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorboard.plugins.custom_scalar import layout_pb2

from lit_edit.algebra.drift import GROUPS

_SHORT = {
    "norm over the original norm": "relative_norm",
    "drift of the dominant triples": "triple_drift",
    "dominant subspace, matched": "ls_matched",
    "condition number": "condition_number",
}


def layout(probes: Mapping[str, str]) -> layout_pb2.Layout:
    """Charts for any run; what it does not measure is an empty chart.

    Args:
        probes: tag of the number that is shown of every probe, by the probe's name.
    """
    categories = [
        _category("Edits: accuracy", _edits("accuracy")),
        _category("Edits: success", _edits("success"), closed=True),
        _category("Abilities", {"all of them": list(probes.values()) or ["ability/.*"], **{n: [t] for n, t in probes.items()}}),
        _category("Weights", {title: [f"spectral/{name}/layer_.*"] for title, name in _SHORT.items()}),
        _category("Guards", {"share of the change taken away": ["guard/.*/removed_share/layer_.*"]}),
        _category(
            "Time and targets",
            {
                "seconds to a batch": ["time/.*"],
                "probability at the targets": ["target/probability"],
                "loss at the targets": ["target/loss"],
            },
        ),
    ]
    for group, measures in GROUPS.items():
        charts = {name.replace("_", " "): [f"spectral/{name}/layer_.*"] for name in measures}
        categories.append(_category(f"All spectral measures: {group}", charts, closed=True))
    return layout_pb2.Layout(category=categories)


def _edits(scoring: str) -> dict[str, list[str]]:
    charts = {
        metric: [f"{where}/{metric}/{scoring}" for where in ("before", "edit/immediate", "edit/so_far", "final")]
        for metric in ("efficacy", "paraphrase", "neighbourhood")
    }
    return charts | {"retention by age": [f"retention/.*/{scoring}/.*"]}


def _category(title: str, charts: Mapping[str, Sequence[str]], closed: bool = False) -> layout_pb2.Category:
    made = [
        # TensorBoard takes a pattern that fits the beginning of a tag, and "ls" is a beginning of "ls_left".
        layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"{tag}$" for tag in tags]))
        for name, tags in charts.items()
    ]
    return layout_pb2.Category(title=title, chart=made, closed=closed)
