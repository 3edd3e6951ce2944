"""What a long computation has added up so far, kept in the store until it is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.store import Store

log = logging.getLogger(__name__)

SECONDS = 300.0
"""Seconds of work that an interrupt may cost."""

_SHARE = 20.0
"""Writing may take one part in so many of the time: the sums of a large model are gigabytes."""


class Stale(Exception):
    """What was kept belongs to other input than what is being worked on."""


class Partial:
    """One intermediate state in the store, replaced every now and then: checksummed and atomic like every artefact.

    Args:
        store: where it lies.
        identity: of the whole computation and of everything its rounding depends on; see :class:`Store`.
        seconds: time between two writes.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        store: Store,
        identity: dict[str, Any],
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.identity, self.seconds, self.clock = store, identity, seconds, clock
        self._next = clock() + seconds

    def load(self) -> dict[str, Tensor] | None:
        """The tensors that were saved last, or ``None`` where there are none that are whole (which is said)."""
        try:
            return self.store.get(self.identity)
        except EditError as error:
            log.warning("%s; starting over", error)
            return None

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.clock() >= self._next

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Replace what is kept; a full disk costs the chance to go on later, not the work that is under way."""
        started = self.clock()
        try:
            self.store.put(self.identity, tensors)
        except EditError as error:
            log.warning("%s; going on without", error)
        ended = self.clock()
        self._next = ended + max(self.seconds, _SHARE * (ended - started))

    def remove(self) -> None:
        """Delete it: the work is done, or worth nothing."""
        path = self.store.path(self.identity)
        for name in (path.with_suffix(".json"), path):  # the note first: without it the tensors do not count
            name.unlink(missing_ok=True)
