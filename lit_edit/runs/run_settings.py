"""The options of a run, flat: what a run that resumes compares with its checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
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


def called(part: object, place: str, settings: Mapping[str, Any], apart: Collection[str] = ()) -> str:
    """Class of an editor or a guard, with the options that are not its defaults, as in ``REVIVE(mode=constrain)``.

    Args:
        part: the editor or guard.
        place: where it stands in the settings, e.g. ``model.guards.0``.
        settings: options of the run, see :func:`settings_of`; without them only the class is told.
        apart: options that are told elsewhere.
    """
    usual = {name: parameter.default for name, parameter in inspect.signature(type(part)).parameters.items()}
    options = {name.removeprefix(f"{place}."): value for name, value in settings.items() if name.startswith(f"{place}.")}
    told = [
        f"{name}={short(value)}"
        for name, value in options.items()
        if name in usual and value != usual[name] and name not in apart
    ]
    return type(part).__name__ + (f"({', '.join(told)})" if told else "")


def guards_called(guards: Iterable[object], settings: Mapping[str, Any], apart: Collection[str] = ()) -> list[str]:
    """Guards in the order in which they act; see :func:`called`."""
    return [called(guard, f"model.guards.{at}", settings, apart) for at, guard in enumerate(guards)]


def method_of(editor: object, guards: Iterable[object], settings: Mapping[str, Any]) -> str:
    """Editor, then its guards, as in ``MEMIT(history=True) + REVIVE``; see :func:`called`."""
    return " + ".join((called(editor, "model.editor", settings), *(guards_called(guards, settings) or ["no guard"])))


def short(value: object) -> str:
    """A setting as it is read: no more digits than it takes."""
    return f"{value:g}" if isinstance(value, float) else str(value)


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
