"""Progress where there is no terminal: lines now and then, or nothing."""

from __future__ import annotations

import sys
import time

from lit_edit.errors import EditError
from lit_edit.progress.base import Progress
from lit_edit.progress.estimate import Estimate, duration


class PlainProgress(Progress):
    """Lines on standard error, for log files: batches, edits, time left and latest scores, without any control character.

    There is a line after the first batch, after the last one, and whenever ``every_seconds`` have passed since the last line,
    then also from within a batch; and one with the scores of every validation.

    Args:
        every_seconds: least time between two lines about the stream or a piece of work.

    Raises:
        EditError: if it is negative.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        super().__init__()
        if not every_seconds >= 0:
            raise EditError(f"PlainProgress's every_seconds is {every_seconds:g}; it must be 0 (every step) or more")
        self.every_seconds = every_seconds
        self._spoke = time.monotonic()
        self._left = Estimate(0, 0)
        self._begun = False
        self._work: Estimate | None = None

    def _say(self, *parts: str) -> None:
        self._spoke = time.monotonic()
        print(f"[{time.strftime('%H:%M:%S')}] {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)

    def _is_time(self) -> bool:
        return time.monotonic() - self._spoke >= self.every_seconds

    def stream_begins(self, done: int, total: int) -> None:
        """Start the clock."""
        self._left, self._begun = Estimate(done, total), True
        of = f" of {total:,}" if total else ""
        self._say(f"editing from batch {done + 1:,}{of}")

    def stream_moves(self, done: int, total: int, edits: int, scores: dict[str, float]) -> None:
        """See the class."""
        first = self._left.each() is None
        self._left.move(done, total)
        if first or done == total or self._is_time():
            each = self._left.each()
            pace = "" if each is None else f"{each:.1f} s a batch"
            when = f"in {duration(self._left.spent())}" if done == total else self._left.told()
            self._say(_of("batch", done, total), f"{edits:,} edits", pace, when, *_scores(scores))

    def stream_ends(self) -> None:
        """Nothing more of the stream."""
        self._begun = False

    def work(self, name: str, done: int, total: int) -> None:
        """See the class."""
        if self._work is None or done < self._work.done or total != self._work.total:
            self._work = Estimate(done, total)
        self._work.move(done, total)
        if self._is_time():
            where = _of("batch", self._left.done + 1, self._left.total) if self._begun and not self.evaluating else ""
            self._say(where, _of(name, done, total), self._work.told())

    def work_ends(self) -> None:
        """The next piece of work has a clock of its own."""
        self._work = None

    def scored(self, protocol: str, edits: int, scores: dict[str, float]) -> None:
        """A line of a validation."""
        self._say(f"scored {protocol.replace('_', ' ')} ({edits:,} edits): {', '.join(_scores(scores))}")


class QuietProgress(Progress):
    """Nothing but warnings, errors and the table at the end; the run's messages are left out as well."""

    def stream_begins(self, done: int, total: int) -> None:
        """Nothing."""

    def stream_moves(self, done: int, total: int, edits: int, scores: dict[str, float]) -> None:
        """Nothing."""

    def stream_ends(self) -> None:
        """Nothing."""

    def work(self, name: str, done: int, total: int) -> None:
        """Nothing."""

    def work_ends(self) -> None:
        """Nothing."""


def _of(what: str, done: int, total: int) -> str:
    return f"{what} {done:,}/{total:,}" if total else f"{what} {done:,}"


def _scores(scores: dict[str, float]) -> list[str]:
    return [f"{name} {value:.3f}" for name, value in scores.items()]
