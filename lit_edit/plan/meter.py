"""Counting bytes of tensors that exist only as shapes, while real code runs over them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_edit.micro_batches import is_weight


class Live(TorchDispatchMode):
    """Bytes of all tensors that are made inside of the block and still held, and the most there ever were at once.

    A storage counts once, however many views look at it. What was there before does not count, nor does the space that a
    kernel takes and gives back within one call.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it open
        self.now = 0
        self.peak = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {part.untyped_storage()._cdata for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)}
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, Tensor) and part.untyped_storage()._cdata not in old:
                self._count(part.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._held:
            return
        self._held[place] = weakref.ref(storage, self._gone(place, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, place: int, size: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self._held.pop(place, None)
            self.now -= size

        return gone


@dataclass
class Kept:
    """What a forward pass keeps for its backward pass, as :func:`lit_edit.micro_batches.within` counts it."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of distinct storages, parameters left out."""
        return sum(self.storages.values())


@contextmanager
def keeping() -> Iterator[Kept]:
    """Count what autograd keeps inside of the block."""
    kept = Kept()

    def count(value: Tensor) -> Tensor:
        if not is_weight(value):
            storage = value.untyped_storage()
            kept.storages[storage._cdata] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        yield kept
