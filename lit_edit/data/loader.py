"""Batches for Lightning's four loops: plain iterables, because requests are text.

They are deliberately no ``torch.utils.data.DataLoader``. There is nothing to collate, pin or prefetch, and a
``DataLoader`` is what Lightning rebuilds with a *shuffling* distributed sampler in training and with an index tracking
sampler in prediction; other iterables it leaves alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_edit.errors import EditError
from lit_edit.request import EditBatch, EditRequest


@dataclass(eq=False)
class StreamLoader:
    """The edits in stream order, resumable by position.

    Lightning stores :meth:`state_dict` in every checkpoint and hands it to :meth:`load_state_dict` before the first
    batch of a resumed run. The position is the number of batches that Lightning has *processed*, not of those this
    loader has yielded: after an exception in a training step the batch in flight was yielded but never applied.

    Args:
        requests: the stream.
        batch_size: requests to a batch; the last batch may be smaller.
        processed: tells how many batches of this stream have been applied.
    """

    requests: Sequence[EditRequest] = field(repr=False)
    batch_size: int
    processed: Callable[[], int] = field(repr=False)
    _start: int = field(default=0, init=False)

    def __len__(self) -> int:
        """Batches of the whole stream, also after a resume: Lightning counts those already done against it."""
        return -(-len(self.requests) // self.batch_size)

    def __iter__(self) -> Iterator[EditBatch]:
        """The batches that are left."""
        # Runs at the first next(), not at iter(): an iterator that is made and dropped does not use up the position.
        # A second epoch, should there be one, is the whole stream again.
        start, self._start = self._start, 0
        for at in range(start * self.batch_size, len(self.requests), self.batch_size):
            yield EditBatch(tuple(self.requests[at : at + self.batch_size]), at)

    def state_dict(self) -> dict[str, Any]:
        """Position, and enough to notice a stream that is not the same one."""
        position = self.processed()
        edited = min(position * self.batch_size, len(self.requests))
        return {
            "position": position,
            "batch_size": self.batch_size,
            "edited": edited,
            "fingerprint": fingerprint(self.requests[:edited]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped.

        Only what was already edited has to be the same; the rest of the stream may have grown or changed.

        Raises:
            EditError: if the batch size differs, or the edits that the checkpoint contains are not the first ones of
                this stream.
        """
        position, edited = state["position"], state["edited"]
        if state["batch_size"] != self.batch_size:
            raise EditError(
                f"The checkpoint was written with batch_size {state['batch_size']}, this run has {self.batch_size}; "
                "its position counts batches, so resume with the same batch_size."
            )
        if edited > len(self.requests):
            raise EditError(
                f"The checkpoint contains {edited} edits, this edit set only has {len(self.requests)}; resume with the "
                "edit set, limit and order that it was written with."
            )
        if edited != min(position * self.batch_size, len(self.requests)):
            raise EditError(
                f"The checkpoint's last batch was the incomplete end of a stream of {edited} edits, and this edit set "
                f"goes on to {len(self.requests)}; put the new edits in a stream of their own."
            )
        if state["fingerprint"] != fingerprint(self.requests[:edited]):
            raise EditError(
                f"The checkpoint's {edited} edits are not the first {edited} of this edit set; resume with the edit "
                "set, order and seed that it was written with."
            )
        self._start = position


@dataclass(frozen=True, eq=False)
class ReviewLoader:
    """The edits made so far, to be scored again.

    How many they are is asked whenever an iteration begins, so one loader serves all validations of a run. It therefore
    has no ``__len__``: Lightning asks for lengths once, before the first edit.

    Args:
        requests: the stream.
        batch_size: requests to a batch.
        edited: tells how many requests of the stream have been applied.
        most: if there are more, this many are taken, evenly spread from the first edit to the latest; ``None`` takes
            all.
    """

    requests: Sequence[EditRequest] = field(repr=False)
    batch_size: int
    edited: Callable[[], int] = field(repr=False)
    most: int | None

    def batches(self) -> int:
        """How many batches an iteration that begins now will have."""
        return -(-len(spread(min(self.edited(), len(self.requests)), self.most)) // self.batch_size)

    def __iter__(self) -> Iterator[EditBatch]:
        """Batches in stream order; ``start`` is the position of a batch's first request."""
        positions = spread(min(self.edited(), len(self.requests)), self.most)
        for at in range(0, len(positions), self.batch_size):
            chosen = positions[at : at + self.batch_size]
            yield EditBatch(tuple(self.requests[position] for position in chosen), chosen[0])


@dataclass(frozen=True, eq=False)
class ItemLoader:
    """Items of a probe in batches, each a tuple; the items are the probe's own business."""

    items: Sequence[Any] = field(repr=False)
    batch_size: int

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches in the probe's order."""
        for at in range(0, len(self.items), self.batch_size):
            yield tuple(self.items[at : at + self.batch_size])


def spread(count: int, most: int | None) -> list[int]:
    """At most ``most`` of the positions ``0 .. count - 1``, evenly spread, with both ends.

    >>> spread(3, 5), spread(100, 4), spread(100, 1)
    ([0, 1, 2], [0, 33, 66, 99], [99])
    """
    if most is None or count <= most:
        return list(range(count))
    if most < 2:
        return [count - 1] * most
    return [i * (count - 1) // (most - 1) for i in range(most)]


def fingerprint(requests: Sequence[EditRequest]) -> str:
    """Hash of what was edited: prompts, subjects and targets in order (not where they were read)."""
    digest = hashlib.sha256()
    for request in requests:
        for part in (request.prompt, request.subject, request.target_new):
            encoded = part.encode("utf-8")
            # The length in front keeps ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
