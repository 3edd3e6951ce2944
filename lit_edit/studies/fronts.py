"""Fronts of two goods, both better when larger: what is dominated, what lies under them, how far one is from another."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.studies.seeds import along

Points = Sequence[tuple[float, float]]
"""``(efficacy, preservation)`` of some settings."""


def front(points: Points) -> list[tuple[float, float]]:
    """The points that no other one is at least as good as in both and better in one, by rising efficacy.

    Example:
        >>> front([(0.9, 0.2), (0.5, 0.8), (0.4, 0.7), (0.9, 0.1)])
        [(0.5, 0.8), (0.9, 0.2)]
    """
    kept: list[tuple[float, float]] = []
    for efficacy, preserved in sorted(set(points), reverse=True):
        if not kept or preserved > kept[-1][1]:
            kept.append((efficacy, preserved))
    return kept[::-1]


def hypervolume(points: Points) -> float:
    """Area that is dominated by some of the points, down to (0, 0).

    Example:
        >>> hypervolume([(1.0, 0.5), (0.5, 1.0)])
        0.75
    """
    area = reached = 0.0
    for efficacy, preserved in front(points):
        area += max(efficacy - reached, 0.0) * max(preserved, 0.0)
        reached = max(reached, efficacy)
    return area


def lead(points: Points, reference: Points) -> float | None:
    r"""How much more is preserved at equal efficacy: mean height of one front over another where both have settings.

    .. math:: \frac{1}{b - a} \int_a^b \big(f(e) - f_0(e)\big)\, de

    :math:`f(e)` is the most that is preserved at an efficacy of at least :math:`e`: the front, linear between neighbouring
    settings, and level below its least effective one (nobody has to use a setting that is worse in both). ``[a, b]`` are the
    efficacies between the least and the most effective setting of both. Zero means that both lie on one front: the one only
    moves along what the other reaches as well.

    Args:
        points: settings to judge.
        reference: settings to compare with.

    Returns:
        The mean lead; ``None`` where the two have no efficacy in common.

    Example:
        >>> round(lead([(0.5, 0.9), (0.9, 0.5)], [(0.4, 0.9), (0.8, 0.5)]), 6)
        0.1
    """
    if not points or not reference:
        return None
    mine, other = front(points), front(reference)
    low = max(min(efficacy for efficacy, _ in some) for some in (points, reference))
    high = min(mine[-1][0], other[-1][0])
    if low > high:
        return None
    # Both are linear between these, so that trapezia are exact.
    at = sorted({low, high, *(e for e, _ in (*mine, *other) if low < e < high)})
    gaps = [_most(mine, e) - _most(other, e) for e in at]
    if high == low:
        return gaps[0]
    steps = zip(zip(at, gaps, strict=True), zip(at[1:], gaps[1:], strict=False), strict=False)
    return sum((right - left) * (a + b) / 2 for (left, a), (right, b) in steps) / (high - low)


def _most(found: Points, efficacy: float) -> float:
    """Height of a front, level on its left."""
    return found[0][1] if efficacy <= found[0][0] else along(found, efficacy)
