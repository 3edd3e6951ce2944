"""Work in parts: of like length, and half as large where memory does not suffice. The numbers are those of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_edit.errors import OutOfMemory

Part = TypeVar("Part")

LARGER = "--model.dtype bfloat16 or a larger device helps"
"""What helps where nothing is left to halve, and no setting is known that helps more."""

_SAYINGS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "CUDA out of memory",
    "CUDA error: out of memory",  # a kernel, not the allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


class TooLarge(Exception):
    """A part needs more memory than it was given."""


class Room:
    """What has not fitted into memory so far: work that is done thousands of times does not fail at it every time.

    What it splits is split as if it had been tried, so that the parts, and with them the numbers, do not depend on whether
    somebody remembered.
    """

    def __init__(self) -> None:
        self.too_much = math.inf
        """The smallest cost of a part that did not fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, whichever allocator ran out."""
    if isinstance(error, (TooLarge, torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


@contextmanager
def enough_memory(what: str, advice: str = LARGER) -> Iterator[None]:
    """Say in a sentence what memory does not suffice for, where nothing can be halved.

    Args:
        what: what is done inside the block.
        advice: what helps.

    Raises:
        OutOfMemory: with that sentence.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise too_little(what, error, advice) from None


def too_little(what: str, error: BaseException, advice: str = LARGER) -> OutOfMemory:
    """What is said where memory does not suffice for something, with the first line of what the allocator said."""
    said = (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__
    return OutOfMemory(f"memory does not suffice for {what} ({said}); {advice}")


def by_length(lengths: Sequence[int], rows: int, most: int, worth: int) -> list[list[int]]:
    """Items in parts of like length, each part in the items' own order.

    Rows are padded to the longest of their part, and padding is computed like everything else. A part is closed when it is
    full, or when it is worth a pass of its own and the next item is more than 15 % longer than its shortest.

    Args:
        lengths: tokens in a row of each item.
        rows: rows of an item.
        most: items to a part.
        worth: tokens from which a forward pass is no faster per token for being larger.

    Example:
        >>> by_length([5, 9, 5, 10], rows=4, most=8, worth=32)
        [[0, 2], [1, 3]]
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if parts:
            part = parts[-1]
            shortest = lengths[part[0]]
            if len(part) < most and (len(part) * rows * shortest < worth or lengths[index] <= 1.15 * shortest):
                part.append(index)
                continue
        parts.append([index])
    return [sorted(part) for part in parts]


def worth_a_pass(device: torch.device) -> int:
    """Tokens from which a forward pass is no faster per token for being larger: few on a CPU, thousands on a GPU."""
    return 128 if device.type == "cpu" else 4096


def halving(
    items: list[int],
    run: Callable[[list[int]], Part],
    what: str,
    advice: str = LARGER,
    room: Room | None = None,
    cost: Callable[[list[int]], float] = len,
) -> list[tuple[list[int], Part]]:
    """Run over all items at once, and over halves of them where memory does not suffice.

    Args:
        items: what to run over, at least one.
        run: does the work; what it began with too many items must leave no trace.
        what: of what one item is too large, for the error.
        advice: what helps then, for the error.
        room: what did not fit before, where the same work is done again and again.
        cost: how much memory some items take, in any unit; a half must not cost more than the whole.

    Returns:
        The parts that were run, and what came of each; together the items in their order.

    Raises:
        OutOfMemory: if a single item is too large.
    """
    size = cost(items)
    if len(items) == 1 or room is None or size < room.too_much:
        try:
            return [(items, run(items))]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(items) == 1:
                raise too_little(what, error, advice) from None
        if room is not None:
            room.too_much = min(room.too_much, size)
        # Outside of the handler: the exception would keep everything alive that the failed attempt had made.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    middle = len(items) // 2
    return [part for half in (items[:middle], items[middle:]) for part in halving(half, run, what, advice, room, cost)]


def is_weight(kept: Tensor) -> bool:
    """Whether what autograd keeps is a parameter or a view of one (a projection keeps its weight transposed)."""
    return isinstance(kept, torch.nn.Parameter) or isinstance(kept._base, torch.nn.Parameter)


@contextmanager
def within(budget: float | None) -> Iterator[None]:
    """Count what a forward pass keeps for its backward pass.

    Args:
        budget: GiB; ``None`` counts nothing.

    Raises:
        TooLarge: as soon as it is over the budget.
    """
    if budget is None:
        yield
        return
    left = budget * 2**30
    known: set[int] = set()

    def count(kept: Tensor) -> Tensor:
        nonlocal left
        place = kept.untyped_storage().data_ptr()
        if place not in known and not is_weight(kept):
            known.add(place)
            left -= kept.untyped_storage().nbytes()
            if left < 0:
                raise TooLarge(f"its forward pass keeps more than the {budget:g} GiB of --model.targets.memory")
        return kept

    def give(kept: Any) -> Any:
        return kept

    with torch.autograd.graph.saved_tensors_hooks(count, give):
        yield
