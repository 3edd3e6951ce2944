"""How numbers and names read on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "\N{EN DASH}"
"""Where there is no number."""


def number(value: float | None, signed: bool = False) -> str:
    """Three digits behind the point; three significant ones for what is very large or small.

    Example:
        >>> number(0.97), number(-0.025, signed=True), number(3.6e-8), number(1234567), number(None)
        ('0.970', '-0.025', '3.60e-08', '1.23e+06', '\u2013')
    """
    if value is None or math.isnan(value):
        return NOTHING
    sign = "+" if signed and value else ""
    if value == 0 or 5e-4 <= abs(value) < 1e4:
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.2e}"


def between(bounds: Sequence[float | None] | None, signed: bool = False) -> str:
    """An interval, empty if there is none.

    Example:
        >>> between([0.25, 0.5]), between(None)
        ('0.250 to 0.500', '')
    """
    if bounds is None or None in bounds:
        return ""
    return f"{number(bounds[0], signed)} to {number(bounds[1], signed)}"


def plain(name: str) -> str:
    """A logged name, or a part of one, in words.

    Example:
        >>> plain("so_far"), plain("teacher_forced"), plain("ls"), plain("ss_left")
        ('so far', 'teacher-forced', 'LS', 'SS left')
    """
    first, *rest = name.replace("teacher_forced", "teacher-forced").split("_")
    return " ".join([first.upper() if first in ("ls", "ss") else first, *rest])


def title(name: str) -> str:
    """:func:`plain`, with a capital at its beginning."""
    told = plain(name)
    return told[:1].upper() + told[1:]


def count(amount: int, what: str, several: str | None = None) -> str:
    """An amount with its noun.

    Example:
        >>> count(1, "batch", "batches"), count(1200, "edit")
        ('1 batch', '1,200 edits')
    """
    return f"{amount:,} {what if amount == 1 else several or what + 's'}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers inside a range, at steps of 1, 2, 2.5 or 5 times a power of ten.

    Example:
        >>> ticks(0.0, 1.0), ticks(0, 300), ticks(0.97, 1.42)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0], [1.0, 1.1, 1.2, 1.3, 1.4])
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12 - math.floor(math.log10(step))) for at in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short texts for the ticks of an axis, all with the same number of digits.

    Example:
        >>> tick_labels([0.0, 0.25, 0.5]), tick_labels([0.0, 50000.0]), tick_labels([0.0, 2e-8])
        (['0.00', '0.25', '0.50'], ['0', '50k'], ['0', '2e-08'])
    """
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e7 or 0 < largest < 2e-3:
        return ["0" if value == 0 else f"{value:.3g}" for value in values]
    if largest >= 1e4:
        return ["0" if value == 0 else f"{value / 1000:g}k" for value in values]
    for digits in range(5):
        texts = [f"{value:.{digits}f}" for value in values]
        if all(math.isclose(float(text), value, abs_tol=largest * 1e-6) for text, value in zip(texts, values, strict=True)):
            return texts
    return [f"{value:.3g}" for value in values]
