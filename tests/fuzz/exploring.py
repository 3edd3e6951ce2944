"""One property over many generated inputs: a few in the short form, the same ones every time; thousands, drawn anew, in the long one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

RAN: Counter[str] = Counter()
"""Examples by test."""
LONGEST = 1500
"""Characters of a sentence that somebody is meant to read."""


@dataclass(frozen=True)
class Size:
    """How many examples, and whether they are drawn anew in every run."""

    count: int
    anew: bool


def sizes(short: int, long: int) -> Any:
    """Two forms of a test with an argument ``size``; ``-m long`` runs the second one."""
    marks = [pytest.mark.long, pytest.mark.timeout(3600)]
    forms = [pytest.param(Size(short, False), id="short"), pytest.param(Size(long, True), id="long", marks=marks)]
    return pytest.mark.parametrize("size", forms)


def explore(size: Size, strategy: SearchStrategy, check: Callable[[Any], None]) -> None:
    """Check a property for examples of a strategy; the smallest one that breaks it is printed."""
    test = os.environ["PYTEST_CURRENT_TEST"].split("/")[-1].split(" ")[0]

    @settings(
        max_examples=size.count,
        derandomize=not size.anew,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example: Any) -> None:
        RAN[test] += 1
        check(example)

    one()


def told(error: BaseException, *names: str) -> str:
    """The sentence of an error, if it is one that a person can read: one line, not endless, with the names in it."""
    sentence = str(error)
    assert sentence and len(sentence) <= LONGEST, sentence
    plain(sentence)
    assert all(name in sentence for name in names), sentence
    assert not re.search(r"Traceback|<class '|object at 0x", sentence), sentence
    return sentence


def plain(text: str) -> None:
    """Whether a terminal and a UTF-8 file can take a text as it is."""
    assert isinstance(text, str) and text.strip()
    text.encode("utf-8")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", text), repr(text)
