"""Rows of numbers as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of their columns; numbers to the right, with three digits behind the point.

    Ends of intervals (``_low``, ``_high``) are left out: a terminal is not as wide as a CSV.

    Example:
        >>> print(columns([{"share": "top 5 %", "sentiment": 0.51234}, {"share": "top 100 %", "sentiment": 1.0}]))
        share      sentiment
        top 5 %        0.512
        top 100 %      1.000
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if not name.endswith(("_low", "_high"))]
    cells = [names, *([shown(row.get(name)) for name in names] for row in rows)]
    right = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    lines = [
        "  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def shown(value: Any) -> str:
    """One cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or 5e-4 <= abs(value) < 1e4 else f"{value:.3g}"
