"""How long the rest will take."""

from __future__ import annotations

import time


class Estimate:
    """The time that is left of a number of equal steps, from the mean time of those done so far.

    Between two steps it counts down; it does not grow while a long step is under way.

    Args:
        done: steps that were done before the clock started, a resumed run's for example.
        total: steps in all; 0 where nobody knows.
        now: seconds of a monotonic clock.
    """

    def __init__(self, done: int, total: int, now: float | None = None) -> None:
        self.first, self.done, self.total = done, done, total
        self.start = self.latest = time.monotonic() if now is None else now

    def move(self, done: int, total: int, now: float | None = None) -> None:
        """So many steps are done now."""
        self.total = total
        if done != self.done:
            self.done, self.latest = done, time.monotonic() if now is None else now

    def each(self) -> float | None:
        """Mean seconds of a step; ``None`` before the first one is done."""
        made = self.done - self.first
        return (self.latest - self.start) / made if made > 0 else None

    def left(self, now: float | None = None) -> float | None:
        """Seconds left; ``None`` where they cannot be told.

        Example:
            >>> clock = Estimate(0, 4, now=0.0)
            >>> clock.move(1, 4, now=10.0)
            >>> clock.left(now=10.0), clock.left(now=14.0), clock.left(now=99.0)
            (30.0, 26.0, 20.0)
        """
        each = self.each()
        if each is None or not self.total:
            return None
        rest = max(self.total - self.done, 0)
        waited = (time.monotonic() if now is None else now) - self.latest
        return rest * each - min(waited, each if rest else 0.0)

    def spent(self, now: float | None = None) -> float:
        """Seconds since the clock was started."""
        return (time.monotonic() if now is None else now) - self.start

    def told(self, now: float | None = None) -> str:
        """:meth:`left` as text, empty where it cannot be told."""
        left = self.left(now)
        return "" if left is None else f"ETA {duration(left)}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(4.4), duration(75), duration(36_075)
        ('0:04', '1:15', '10:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
