"""The options of a run, flat: what a run that resumes compares with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace


def settings_of(config: Any) -> dict[str, Any]:
    """The options that say what a run does, by the names they are typed with; where it lies and what it shows is left out.

    Example:
        >>> settings_of({"run_dir": "runs/a", "model": {"guards": [{"class_path": "REVIVE", "init_args": {"tau": 0.1}}]}})
        {'model.guards.0.class_path': 'REVIVE', 'model.guards.0.tau': 0.1}
    """
    places = ("config", "run_dir", "ckpt_path", "weights_only", "trainer.default_root_dir", "checkpoint.dirpath")
    beside = ("config.", "progress")
    return {name: value for name, value in _flat("", config) if name not in places and not name.startswith(beside)}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Plain values by dotted names; ``model.guards.0.tau`` is the tau of the first guard."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = {str(index): part for index, part in enumerate(value)}
    if not isinstance(value, dict):
        yield name, value if value is None or isinstance(value, bool | int | float | str) else str(value)
        return
    for key, part in value.items():
        if key.startswith("__"):
            continue
        yield from _flat(name if key == "init_args" else f"{name}.{key}".lstrip("."), part)
