"""Work in parts: of like length, and half as large where memory does not suffice. The numbers are those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_edit.errors import EditError

Part = TypeVar("Part")


class TooLarge(Exception):
    """A part needs more memory than it was given."""


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


def halving(items: list[int], run: Callable[[list[int]], Part], what: str) -> list[tuple[list[int], Part]]:
    """Run over all items at once, and over halves of them where memory does not suffice.

    Args:
        items: what to run over.
        run: does the work; what it began with too many items must leave no trace.
        what: of what one item is too large, for the error.

    Returns:
        The parts that were run, and what came of each.

    Raises:
        EditError: if a single item is too large.
    """
    try:
        return [(items, run(items))]
    except (TooLarge, torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, (TooLarge, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        if len(items) == 1:
            raise EditError(
                f"memory does not suffice for {what} ({str(error).splitlines()[0]}); "
                "--model.dtype bfloat16 or a larger device helps"
            ) from None
    # Outside of the handler: the exception would keep everything alive that the failed attempt had made.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(items) // 2
    return [*halving(items[:middle], run, what), *halving(items[middle:], run, what)]


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
        if place not in known and not isinstance(kept, torch.nn.Parameter):
            known.add(place)
            left -= kept.untyped_storage().nbytes()
            if left < 0:
                raise TooLarge(f"its forward pass keeps more than the {budget:g} GiB of --model.targets.memory")
        return kept

    def give(kept: Any) -> Any:
        return kept

    with torch.autograd.graph.saved_tensors_hooks(count, give):
        yield
