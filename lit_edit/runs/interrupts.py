"""Keeping Ctrl-C and SIGTERM out of the moment in which a batch is applied, and making SIGTERM end a run in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SIGTERMException):
    """The run was asked to end by a signal; Lightning's hooks see it as they see an error.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Interrupts:
    """Holds SIGINT and SIGTERM back between :meth:`hold` and :meth:`release`.

    Python raises ``KeyboardInterrupt`` between any two instructions: also between adding a batch to the weights and noting
    that it was added, and a checkpoint written on the way out would then apply it twice. A second Ctrl-C always gets through.
    Outside the main thread, where Python delivers no signals, nothing happens.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._pressed: int | None = None

    def hold(self) -> None:
        """Note a signal from now on instead of obeying it."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._pressed = None
            self._before = {number: signal.signal(number, self._note) or signal.SIG_DFL for number in SIGNALS}

    def release(self) -> None:
        """Obey a signal that was noted, and let others through again; harmless if none is held.

        Raises:
            KeyboardInterrupt: if there was a Ctrl-C.
            Terminated: if there was a SIGTERM and :func:`ending_in_order` listens to it.
        """
        if not self._before:
            return
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        pressed, self._pressed = self._pressed, None
        if pressed is not None:
            signal.raise_signal(pressed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self._pressed = self._pressed is not None, number
        if again:
            self.release()


def end(number: int, frame: FrameType | None) -> None:
    """A handler that raises :class:`Terminated`."""
    raise Terminated(number)


@contextmanager
def ending_in_order(*numbers: int) -> Iterator[None]:
    """Raise :class:`Terminated` where one of these signals arrives, instead of dying on the spot.

    Lightning's own handler of SIGTERM only notes it, to end after the batch in flight: minutes, for large models, in which a
    scheduler loses its patience. Scoring the unedited model it forgets it altogether. It does call handlers that were there
    before it, as this one is. Outside the main thread nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
