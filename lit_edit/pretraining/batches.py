"""Training batches that are made while training, resumable by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class GeneratedBatches:
    """One epoch of batches; batch ``i`` follows from ``i`` alone.

    Args:
        batches: how many.
        make: makes batch ``i``.
        processed: tells how many batches have been trained on.
    """

    batches: int
    make: Callable[[int], dict[str, Tensor]] = field(repr=False)
    processed: Callable[[], int] = field(repr=False)
    _start: int = field(default=0, init=False)

    def __len__(self) -> int:
        """Batches of the whole training, also after a resume: Lightning counts those already done against it."""
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches that are left."""
        start, self._start = self._start, 0
        yield from map(self.make, range(start, self.batches))

    def state_dict(self) -> dict[str, Any]:
        """Position."""
        return {"position": self.processed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._start = int(state["position"])
