"""Reading an exported edit that may come from elsewhere: checked before anything of it is used.

Two files with fixed names are read; no path in them is followed. Sizes are capped, the tensor file is compared with its hash,
and whatever it holds has to have the names, dtypes and shapes that the configuration leaves it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from lit_edit.errors import EditError
from lit_edit.export.changes import MOST_STEPS, NAMES, Change
from lit_edit.journal.files import LARGEST, contained
from lit_edit.report.shapes import Maybe, check

FORMAT = 2
"""Number of the layout of the folder; a reader refuses another one."""
CONFIG, TENSORS = "edit_config.json", "edit_delta.safetensors"
_LARGEST_CONFIG = 2**22
_LARGEST_HEADER = 2**25
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.[A-Za-z0-9_]{1,100}){0,30}\.weight")
_HASH = re.compile(r"[0-9a-f]{64}")
_LAYER = {
    "weight": str,
    "shape": (int, int),
    "transposed": bool,
    "form": str,
    "steps": int,
    "base_sha256": str,
    "edited_sha256": str,
    "shown_sha256": str,
}
_CONFIG = {"base_model_name_or_path": str, "revision": Maybe(str), "dtype": str, "bytes": int, "sha256": str, "file": str}
_REMEDY = "fetch or export the folder again"


@dataclass(frozen=True)
class LayerEntry:
    """What ``edit_config.json`` says of one layer.

    Args:
        weight: name of the parameter in the model.
        shape: ``(d_out, d_in)``.
        transposed: whether the model stores it ``[d_in, d_out]`` (GPT-2's ``Conv1D``).
        form: one of :data:`lit_edit.export.changes.NAMES`.
        steps: how many steps the tensors hold.
        base: SHA-256 of the unedited weight, ``[d_out, d_in]`` float32, as the journal hashes weights.
        edited: of the edited weight, in the same form.
        shown: of the edited weight as it stands in the model, in the dtype of the run.
    """

    weight: str
    shape: tuple[int, int]
    transposed: bool
    form: str
    steps: int
    base: str
    edited: str
    shown: str


def read_delta(folder: Path) -> tuple[dict[str, Any], dict[int, LayerEntry], dict[int, Change]]:
    """An exported edit: its configuration, the entries of its layers, and their changes.

    Args:
        folder: what was exported, or a folder of a hub cache that holds it.

    Raises:
        EditError: if it is none, has another format number, or a file of it is missing, too large, altered or of another form.
    """
    if not folder.is_dir():
        raise EditError(
            f"there is no folder {folder}; give one that 'lit-edit export --format delta' wrote, or fetch one first"
        )
    about = read_config(folder)
    entries = {int(number): _entry(value, number, folder / CONFIG) for number, value in about["layers"].items()}
    wanted = {name(layer, step, part) for layer, e in entries.items() for step in range(e.steps) for part in NAMES[e.form]}
    path = folder / TENSORS
    data = _content(folder, TENSORS, CONFIG, about["bytes"], LARGEST)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise EditError(f"{path} is damaged: its SHA-256 is not the one in {CONFIG}; {_REMEDY}")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_LARGEST_HEADER, len(data) - 8):
        raise EditError(f"{path} is damaged: its header claims {length} bytes, at most {_LARGEST_HEADER} are read; {_REMEDY}")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise EditError(f"{path} is damaged or no safetensors file ({error}); {_REMEDY}") from None
    if set(tensors) != wanted:
        strange = sorted(set(tensors) ^ wanted)[0]
        raise EditError(f"{path} is damaged: {strange[:80]!r} is in it or in {CONFIG}, but not in both; {_REMEDY}")
    changes = {
        layer: Change(
            e.form, tuple({part: tensors[name(layer, step, part)] for part in NAMES[e.form]} for step in range(e.steps))
        )
        for layer, e in entries.items()
    }
    for layer, change in changes.items():
        try:
            change.check(*entries[layer].shape)
        except EditError as error:
            raise EditError(f"{path} {error} in layer {layer}; {_REMEDY}") from None
    return about, entries, changes


def name(layer: int, step: int, part: str) -> str:
    """Name of a tensor.

    >>> name(5, 0, "left")
    '5.0.left'
    """
    return f"{layer}.{step}.{part}"


def read_config(folder: Path) -> dict[str, Any]:
    """``edit_config.json`` of a folder, in form.

    Raises:
        EditError: if it is missing, no JSON, of another version, or says something that cannot be.
    """
    path = folder / CONFIG
    try:
        found = json.loads(_content(folder, CONFIG, "an exported edit", None, _LARGEST_CONFIG), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise EditError(f"{path} is damaged: {told}; {_REMEDY}") from None
    number = found.get("format") if isinstance(found, dict) else None
    if number != FORMAT or isinstance(number, bool):
        raise EditError(
            f"{path} has format {str(number)[:20]}, this version reads {FORMAT}; export the edit again, or use that version"
        )
    check(found, {**_CONFIG, "layers": dict.fromkeys(_layers(found, path), _LAYER)}, str(path), _REMEDY)
    if found["file"] != TENSORS:
        # Compared and never joined: what a configuration says is no path.
        raise EditError(f"{path} names another file than {TENSORS}; {_REMEDY}")
    if found["bytes"] < 0:
        raise EditError(f"{path} is damaged: a file cannot have {found['bytes']} bytes; {_REMEDY}")
    return dict(found)


def _layers(found: dict[str, Any], path: Path) -> list[str]:
    layers = found.get("layers")
    if not isinstance(layers, dict) or not layers or not all(re.fullmatch("0|[1-9][0-9]{0,5}", key) for key in layers):
        raise EditError(f"{path} names no edited layers by their numbers; {_REMEDY}")
    return list(layers)


def _entry(value: dict[str, Any], number: str, path: Path) -> LayerEntry:
    """One layer, once everything in it can be."""
    wrong = None
    if not _NAME.fullmatch(value["weight"]):
        wrong = "a name that no weight has"
    elif not all(0 < side <= 2**24 for side in value["shape"]):
        wrong = "a shape that no weight has"
    elif value["form"] not in NAMES:
        wrong = f"a form that is none of {', '.join(NAMES)}"
    elif not (
        value["steps"] == 0
        if value["form"] == "none"
        else 1 <= value["steps"] <= (MOST_STEPS if value["form"] == "factors" else 1)
    ):
        wrong = "a number of steps that its form cannot have"
    elif not all(_HASH.fullmatch(value[key]) for key in ("base_sha256", "edited_sha256", "shown_sha256")):
        wrong = "something else than a SHA-256"
    if wrong is not None:
        raise EditError(f"{path} is damaged: layer {number} has {wrong}; {_REMEDY}")
    rows, columns = value["shape"]
    return LayerEntry(
        value["weight"],
        (rows, columns),
        value["transposed"],
        value["form"],
        value["steps"],
        value["base_sha256"],
        value["edited_sha256"],
        value["shown_sha256"],
    )


def _content(folder: Path, file: str, who: str, size: Any, largest: int) -> bytes:
    """A file of the folder; the cache of a hub keeps files beside its snapshots, and links to them."""
    place = folder.resolve()
    root = place.parent.parent if place.parent.name == "snapshots" else place
    below = str((place / file).relative_to(root))
    remedy = "; give a folder that 'lit-edit export --format delta' wrote"
    return contained(root, below, who, size, largest=largest, whose="the folder", remedy=remedy)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")
