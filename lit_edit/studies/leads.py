"""How far the front of some runs lies over that of others, seeds compared with themselves."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.studies.base import Result
from lit_edit.studies.fronts import lead
from lit_edit.studies.measures import Measure
from lit_edit.studies.seeds import Estimate, over_seeds


def by_seed(
    results: Sequence[Result], efficacy: Measure, preserved: Measure, settings: int
) -> dict[int, list[tuple[float, float]]]:
    """What every setting reaches and keeps at the end, by seed; seeds that lack one of the ``settings`` are left out."""
    found: dict[int, list[tuple[float, float]]] = {}
    for one in results:
        x, y = efficacy.last(one), preserved.last(one)
        if x is not None and y is not None:
            found.setdefault(one["about"]["seed"], []).append((x, y))
    return {seed: points for seed, points in found.items() if len(points) == settings}


def lead_of(
    results: Sequence[Result], reference: Sequence[Result], efficacy: Measure, preserved: Measure, settings: int
) -> Estimate:
    """How much more is preserved at equal efficacy, see :func:`lit_edit.studies.fronts.lead`: mean and 95 % over seeds.

    Args:
        results: runs of every setting under every seed.
        reference: runs of the same settings and seeds that they are compared with.
        efficacy: what is reached.
        preserved: what is kept.
        settings: how many a front has.
    """
    mine, other = (by_seed(some, efficacy, preserved, settings) for some in (results, reference))
    leads = [lead(points, other[seed]) for seed, points in mine.items() if seed in other]
    return over_seeds([one for one in leads if one is not None])
