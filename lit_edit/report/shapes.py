"""Whether JSON that was read from a file is what its reader expects."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

from lit_edit.errors import EditError


class Number:
    """A number, or null where it was not finite."""


@dataclass(frozen=True)
class Each:
    """An object of any keys whose values all have one shape."""

    shape: Any


@dataclass(frozen=True)
class Nullable:
    """A shape or null."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """A shape, null, or (as a value of an object) nothing at all."""

    shape: Any


_NAMES = {str: "a text", int: "a whole number", bool: "true or false", Number: "a number"}


def check(value: Any, shape: Any, where: str, remedy: str = "the run has to be repeated") -> None:
    """Compare a value with a shape.

    Args:
        value: what was read.
        shape: ``str``, ``int``, ``bool``, :class:`Number`, ``[shape]`` for a list, ``(shape, shape)`` for a list of that
            length, ``{key: shape}`` for an object with at least these keys, :class:`Each`, :class:`Nullable`,
            :class:`Maybe`, or ``object`` for anything.
        where: file and place, for the sentence.
        remedy: what helps, for its end.

    Raises:
        EditError: at the first difference.

    Example:
        >>> check({"edits": 3, "scores": {"a": None}}, {"edits": int, "scores": Each(Number)}, "summary.json")
        >>> check({"edits": "3"}, {"edits": int}, "summary.json")
        Traceback (most recent call last):
        lit_edit.errors.EditError: summary.json is damaged: edits is '3' instead of a whole number; the run has to be repeated
    """
    found = _difference(value, shape, "")
    if found is not None:
        place, wanted, got = found
        what = f"{place or 'it'} is {reprlib.repr(got)} instead of {wanted}" if wanted else f"it has no {place}"
        raise EditError(f"{where} is damaged: {what}; {remedy}")


def _difference(value: Any, shape: Any, place: str) -> tuple[str, str, Any] | None:
    """Place, what would be right there (empty: anything at all) and what was found, of the first difference."""
    if isinstance(shape, Maybe | Nullable):
        return None if value is None else _difference(value, shape.shape, place)
    if isinstance(shape, (list, tuple)):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            return place, f"a list of {len(shape)}" if isinstance(shape, tuple) else "a list", value
        shapes = shape if isinstance(shape, tuple) else shape * len(value)
        return _first((part, form, f"{place}[{at}]") for at, (part, form) in enumerate(zip(value, shapes, strict=True)))
    if isinstance(shape, (dict, Each)):
        if not isinstance(value, dict):
            return place, "an object", value
        if isinstance(shape, Each):
            return _first((part, shape.shape, _inside(place, key)) for key, part in value.items())
        for key, form in shape.items():
            if key not in value and not isinstance(form, Maybe):
                return _inside(place, key), "", None
        return _first((value.get(key), form, _inside(place, key)) for key, form in shape.items())
    if shape is Number:
        good = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    else:
        good = isinstance(value, shape) and not (shape is int and isinstance(value, bool))
    if good and isinstance(value, int):
        good = abs(value) < 10**15  # a whole number in JSON can be longer than any float
    return None if good else (place, _NAMES[shape], value)


def _first(parts: Any) -> tuple[str, str, Any] | None:
    return next((found for part in parts if (found := _difference(*part)) is not None), None)


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
