"""The row of a run in TensorBoard's HParams tab: what it was set to, and what it has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Value
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from lit_edit.runs.run_settings import called, guards_called

COLUMNS = {
    "model": api_pb2.DATA_TYPE_STRING,
    "editor": api_pb2.DATA_TYPE_STRING,
    "lam": api_pb2.DATA_TYPE_FLOAT64,
    "guards": api_pb2.DATA_TYPE_STRING,
    "tau": api_pb2.DATA_TYPE_FLOAT64,
    "layers": api_pb2.DATA_TYPE_STRING,
    "batch_size": api_pb2.DATA_TYPE_FLOAT64,
    "requests": api_pb2.DATA_TYPE_FLOAT64,
    "targets.lr": api_pb2.DATA_TYPE_FLOAT64,
    "seed": api_pb2.DATA_TYPE_FLOAT64,
}
"""The same for every run: TensorBoard takes the columns of one run for all runs of a page."""

_FIRST = ("editor", "guards", "lam", "tau")
"""Of the columns TensorBoard shows five before it is asked for more, those that are said to differ first."""


def settings(module: Any, stream: Any) -> dict[str, Any]:
    """Values of :data:`COLUMNS`; what a run does not have is left out.

    Args:
        module: the continual editor, prepared.
        stream: its stream of edits.
    """
    guards = list(module.guards)
    apart = ("lam",)  # which has a column
    found = {
        "model": str(module.pretrained),
        "editor": called(module.editor, "model.editor", module.settings, apart),
        "lam": getattr(module.editor, "lam", None),
        "guards": " + ".join(guards_called(guards, module.settings, apart)) or "none",
        "tau": next((guard.tau for guard in guards if hasattr(guard, "tau")), None),
        "layers": ", ".join(map(str, module.layers)),
        "batch_size": stream.batch_size,
        "requests": len(stream.requests),
        "targets.lr": module.targets.lr,
        "seed": module.settings.get("seed_everything", module.seed),
    }
    return {name: value for name, value in found.items() if isinstance(value, str | int | float)}


def experiment(metrics: Sequence[tuple[str, str]]) -> tuple[str, bytes]:
    """Name and content of the event that says which columns there are.

    Args:
        metrics: tag of a number and the title of its column; the latest value of the tag is shown.
    """
    said = api_pb2.Experiment(
        hparam_infos=[api_pb2.HParamInfo(name=name, type=kind, differs=name in _FIRST) for name, kind in COLUMNS.items()],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title) for tag, title in metrics],
    )
    return metadata.EXPERIMENT_TAG, _content(experiment=said)


def start(values: Mapping[str, Any]) -> tuple[str, bytes]:
    """Name and content of the event that says what a run was set to."""
    said = {name: Value(string_value=v) if isinstance(v, str) else Value(number_value=v) for name, v in values.items()}
    info = plugin_data_pb2.SessionStartInfo(hparams=said)
    return metadata.SESSION_START_INFO_TAG, _content(session_start_info=info)


def end() -> tuple[str, bytes]:
    """Name and content of the event that says that a run has come to its end."""
    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return metadata.SESSION_END_INFO_TAG, _content(session_end_info=info)


def _content(**said: Any) -> bytes:
    made = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **said)
    return bytes(made.SerializeToString())
