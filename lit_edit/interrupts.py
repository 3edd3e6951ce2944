"""Keeping Ctrl-C out of the moment in which a batch is applied."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Holds an interrupt back between :meth:`hold` and :meth:`release`.

    Python raises ``KeyboardInterrupt`` between any two instructions: also between adding a batch to the weights and noting
    that it was added, and a checkpoint written on the way out would then apply it twice. A second Ctrl-C always gets through.
    Outside the main thread, where Python delivers no signals, nothing happens.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._pressed = False

    def hold(self) -> None:
        """Note an interrupt from now on instead of raising it."""
        if self._before is None and threading.current_thread() is threading.main_thread():
            self._pressed = False
            self._before = signal.signal(signal.SIGINT, self._note) or signal.default_int_handler

    def release(self) -> None:
        """Raise an interrupt that was noted, and let others through again; harmless if none is held.

        Raises:
            KeyboardInterrupt: if there was one.
        """
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        self._before = None
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            self.release()
        self._pressed = True
