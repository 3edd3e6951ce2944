"""Progress in a terminal: two bars."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import lightning as L
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lit_edit.progress.base import Progress
from lit_edit.progress.estimate import Estimate, duration
from lit_edit.progress.messages import loggers

_SOON = 0.5
"""Seconds before a piece of work gets a bar: what is over by then would only flicker."""


_MARGIN = 4
"""Columns that a bar leaves free at the right: a terminal writes ``^C`` where the cursor stands, at the end of a bar, and what
goes beyond the last column moves the cursor to a line where the bar would be drawn anew."""


if TYPE_CHECKING:
    _Tqdm = tqdm[Any]
else:
    _Tqdm = tqdm  # which takes no parameter in earnest


class _Bar(_Tqdm):
    """A bar that is a little narrower than the terminal."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar is drawn from."""
        told = super().format_dict
        return {**told, "ncols": told["ncols"] and max(told["ncols"] - _MARGIN, 1)}


class EditProgressBar(Progress):
    """Bars on standard error: one over the batches of the stream, and one for what is being done at the moment.

    The upper one tells the time that is left, the edits written and their latest scores; the lower one goes away with the work
    that it tells of, and is not shown for what takes no half second. Bars fit the width of the terminal, also when that
    changes. Messages of the run appear above them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stream: tqdm[Any] | None = None
        self._work: tqdm[Any] | None = None
        self._name = self._told = ""
        self._refreshed = 0.0
        self._left = self._left_of_work = Estimate(0, 0)
        self._messages = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """Bars hold locks and files; another process opens its own."""
        return {**vars(self), "_stream": None, "_work": None, "_messages": ExitStack()}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let messages appear above the bars."""
        super().setup(trainer, pl_module, stage)
        if self.is_enabled:
            self._messages.close()
            self._messages.enter_context(logging_redirect_tqdm(loggers()))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Leave nothing open."""
        super().teardown(trainer, pl_module, stage)
        self._messages.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """As without an error; Lightning calls no :meth:`teardown` then."""
        super().on_exception(trainer, pl_module, exception)
        self._messages.close()

    @staticmethod
    def _bar(name: str, done: int, total: int, **more: Any) -> tqdm[Any]:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}" if total else "{desc}: {n_fmt}{postfix}"
        return _Bar(
            desc=name, initial=done, total=total or None, file=sys.stderr, dynamic_ncols=True, bar_format=layout, **more
        )

    # ------------------------------------------------------------------------------------------------ the stream

    def stream_begins(self, done: int, total: int) -> None:
        """Open the upper bar."""
        self.stream_ends()
        self._left, self._told = Estimate(done, total), ""
        self._stream = self._bar("Editing", done, total, position=0, leave=True)

    def stream_moves(self, done: int, total: int, edits: int, scores: dict[str, float]) -> None:
        """Move the upper bar."""
        if self._stream is None:
            return
        self._left.move(done, total)
        self._told = ", ".join([f"{edits:,} edits", *(f"{name} {value:.3f}" for name, value in scores.items())])
        self._stream.n = done
        self._refresh(self._left.told())

    def stream_ends(self) -> None:
        """Leave the upper bar where it stands, with the time that was needed."""
        if self._stream is not None:
            self._refresh(f"in {duration(self._left.spent())}")
            self._stream.close()
            self._stream = None

    def _refresh(self, when: str) -> None:
        if self._stream is not None:
            self._refreshed = time.monotonic()
            self._stream.set_postfix_str(", ".join(part for part in (when, self._told) if part))

    # ------------------------------------------------------------------------------------------------ what is being done

    def work(self, name: str, done: int, total: int) -> None:
        """Open or move the lower bar, and let the upper one count down."""
        bar = self._work
        if bar is not None and (done < bar.n or (name != self._name and total != bar.total)):
            self.work_ends()
        if self._work is None:
            below = int(self._stream is not None)
            self._left_of_work, self._name = Estimate(done, total), name
            self._work = bar = self._bar("  " * below + name, done, total, position=below, leave=False, delay=_SOON)
        assert bar is not None
        if name != self._name:
            self._name = name
            bar.set_description_str("  " * int(self._stream is not None) + name, refresh=False)
        self._left_of_work.move(done, total)
        bar.total = total or None
        bar.set_postfix_str(self._left_of_work.told(), refresh=False)
        bar.update(done - bar.n)
        if self._stream is not None and time.monotonic() - self._refreshed >= 1:
            self._refresh(self._left.told())

    def work_ends(self) -> None:
        """Take the lower bar away."""
        if self._work is not None:
            self._work.close()
            self._work = None
