"""JSON and YAML that somebody wrote: plain data no larger than they look, or one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from types import NoneType
from typing import Any

import yaml

from lit_edit.errors import brief

DEEPEST = 100
"""Levels of nesting; what this project writes has about ten."""
MOST = 100_000
"""Values of a YAML document, each counted as often as it is referred to; a configuration has some hundred."""
_PLAIN = (str, int, float, bool, NoneType, dict, list)
_BITS = 1024
_DEEP = f"it is nested deeper than {DEEPEST} levels"


class PlainLoader(yaml.SafeLoader):
    """Takes what looks like a date for text, as the parser of the command line does."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_json(text: str) -> Any:
    """Plain data from JSON.

    Raises:
        ValueError: if it is none, or nested deeper than :data:`DEEPEST` levels.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if any(depth > DEEPEST for depth, _ in enumerate(_levels(found))):
        raise ValueError(_DEEP)
    return found


def load_yaml(text: str, plain: Callable[[str], Any] | None = None) -> Any:
    """Plain data from YAML.

    What an alias (``*name``) repeats is counted as often as it stands there: a few lines can mean billions of values, and one
    that holds itself never ends, for whoever goes through it.

    Args:
        text: the document.
        plain: how it is read; by default with :class:`PlainLoader`.

    Raises:
        yaml.YAMLError: whatever is wrong with it; the message is one line that names line and column where there are any.
    """
    try:
        found = yaml.load(text, Loader=PlainLoader) if plain is None else plain(text)
    except yaml.YAMLError as error:
        raise yaml.YAMLError(_problem(error)) from error
    except RecursionError:
        raise yaml.YAMLError(_DEEP) from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # What builds single values leaves these as they are: '!!int many', '!!bool maybe', the date 2001-99-99.
        raise yaml.YAMLError(f"it holds a value that is not what it is marked as or looks like ({error})") from error
    count = 0
    for depth, level in enumerate(_levels(found)):
        count += len(level)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"{_DEEP}, or an alias (*name) stands inside of what it repeats")
        if count > MOST:
            raise yaml.YAMLError(f"it means more than {MOST:,} values; its aliases (*name) repeat too much")
        long = next((part for part in level if isinstance(part, int) and part.bit_length() > _BITS), None)
        if long is not None:  # hexadecimal; it could not even be written down in decimals
            raise yaml.YAMLError(f"it holds a number of {long.bit_length()} bits; nothing is that large")
        other = next((part for part in level if not isinstance(part, _PLAIN)), None)
        if other is not None:
            what = f"a {type(other).__name__}, {brief(str(other))}"
            raise yaml.YAMLError(f"it holds {what}; values are text (in quotes), numbers, lists and mappings")
    return found


def _levels(value: Any) -> Iterator[list[Any]]:
    """The value, what is in it, what is in that, and so on; of a mapping its keys, too."""
    level = [value]
    while level:
        yield level
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (chain(whole, whole.values()) if isinstance(whole, dict) else whole)
        ]


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, on one line."""
    mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or what is None:
        return " ".join(str(error).split())
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}"
