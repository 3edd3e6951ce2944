"""Several runs of one setting: means, intervals over seeds, and curves on common numbers of edits."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from lit_edit.runs.run_folder import Curve

_STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""

FEW = 5
"""With fewer seeds than this a band runs from the smallest to the largest run: a 95 % interval would leave the picture."""


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t: from a table up to 30 degrees of freedom, then Fisher's expansion (right to 1e-4).

    Example:
        >>> student(2), round(student(40), 3)
        (4.3027, 2.021)
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float | None
    low: float | None = None
    high: float | None = None
    over: str = "-"
    """What the 95 % interval is over: ``3 seeds`` or ``records``; ``-`` where there is none."""

    @property
    def at(self) -> float:
        """The number for a figure; NaN where there is none."""
        return math.nan if self.value is None else self.value

    @property
    def ends(self) -> tuple[float, float]:
        """The interval for a figure: the number itself where there is none."""
        return self.at if self.low is None else self.low, self.at if self.high is None else self.high

    def row(self) -> dict[str, float | str | None]:
        """As columns of a table."""
        return {"value": self.value, "low": self.low, "high": self.high, "95 % over": self.over}


def over_seeds(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    r"""Mean and 95 % t-interval of one number of several runs.

    .. math:: \bar x \pm t_{n-1}\, s / \sqrt n, \qquad s^2 = \frac{1}{n-1} \sum (x - \bar x)^2

    Args:
        values: of each run; a single one has no interval.
        bounds: the interval is cut to these (a rate lies in [0, 1]).

    Example:
        >>> over_seeds([1.0, 2.0, 3.0]).row()
        {'value': 2.0, 'low': -0.48416..., 'high': 4.48416..., '95 % over': '3 seeds'}
    """
    if not values:
        return Estimate(None)
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return Estimate(mean)
    half = student(count - 1) * math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Estimate(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), f"{count} seeds")


@dataclass(frozen=True)
class Band:
    """Several curves as one, all lists of the same length."""

    edits: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(curves: Sequence[Curve]) -> Band:
    """Mean and band of several curves, over the numbers of edits that all of them reach.

    Where one curve has a number of edits that another lacks (a batch of it was rejected, say), the other is interpolated
    linearly. The band is the 95 % t-interval, with fewer than :data:`FEW` curves the smallest and the largest value.
    """
    known = [curve for curve in curves if curve]
    if not known:
        return Band([], [], [], [])
    first, last = max(curve[0][0] for curve in known), min(curve[-1][0] for curve in known)
    edits = sorted({at for curve in known for at, _ in curve if first <= at <= last})
    numbers = [_numbers(curve) for curve in known]
    columns = [[along(points, at) for points in numbers] for at in edits]
    found = [over_seeds(column) for column in columns]
    sides = [(min(column), max(column)) for column in columns] if len(known) < FEW else [one.ends for one in found]
    return Band([float(at) for at in edits], [one.at for one in found], [low for low, _ in sides], [high for _, high in sides])


def along(points: Sequence[tuple[float, float]], at: float) -> float:
    """Height of a line through points, which rise strictly in x and reach ``at`` on both sides.

    Example:
        >>> along([(0.0, 1.0), (10.0, 3.0)], 5.0), along([(2.0, 7.0)], 2.0)
        (2.0, 7.0)
    """
    right = bisect_left(points, at, key=lambda point: point[0])
    x, y = points[right]
    if x == at:
        return y
    before, height = points[right - 1]
    return height + (y - height) * (at - before) / (x - before)


def _numbers(curve: Curve) -> list[tuple[float, float]]:
    """With NaN where there is no number, and the last value where a number of edits comes twice (a rejected batch)."""
    latest = {at: math.nan if value is None else float(value) for at, value in curve}
    return [(float(at), value) for at, value in sorted(latest.items())]


def band_is(count: int) -> str:
    """What the bands of a figure with this many runs a line show, in words."""
    if count < 2:
        return "one run a line"
    return f"mean of {count} runs; band: " + ("smallest to largest" if count < FEW else "95 % t-interval")
