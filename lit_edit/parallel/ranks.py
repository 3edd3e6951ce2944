"""Processes that share the work of one stream, and stay together whatever happens to one of them.

Every rank goes through the same program: what is shared out is what the model has to be run for, and what comes of it is
gathered before anything else happens, so that all that follows is on every rank what it is in a run of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from lit_edit.errors import EditError

T = TypeVar("T")
S = TypeVar("S")


class RankFailed(EditError):
    """Another rank cannot go on, so this one cannot either."""


class Ranks:
    """The ranks of a run: this class is the one rank of a run of one process; see :class:`ProcessRanks` for several."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """How many processes there are."""
    worker: int = 0
    """Number of the share of work that this rank takes where the model is run."""
    workers: int = 1
    """Shares that work is cut into: as many as ranks, or one, where only all of them together can run the model."""
    alone: bool = False
    """Whether the others are gone, or this one is about to go; see :meth:`leave`."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    def strides(self, count: int) -> list[list[int]]:
        """Positions of ``count`` items by worker: every ``workers``-th."""
        return [list(range(worker, count, self.workers)) for worker in range(self.workers)]

    def deal(self, parts: Sequence[Sequence[int]], costs: Sequence[float]) -> list[list[list[int]]]:
        """Parts of a batch by worker, so that all have about as much to do.

        Parts stay whole where there are enough of them: what is computed together decides how sums are rounded, so that the
        numbers then do not depend on how many ranks there are. Where there are fewer parts than ranks, the largest are halved.

        Args:
            parts: positions of items that are worked on together.
            costs: what an item of each part costs.

        Returns:
            For every worker its parts, in the order given.
        """
        pool = [(list(part), cost, index) for index, (part, cost) in enumerate(zip(parts, costs, strict=True))]
        while len(pool) < self.workers and any(len(part) > 1 for part, _, _ in pool):
            largest = max((one for one in pool if len(one[0]) > 1), key=lambda one: len(one[0]) * one[1])
            pool.remove(largest)
            part, cost, index = largest
            middle = len(part) // 2
            pool += [(part[:middle], cost, index), (part[middle:], cost, index)]
        dealt: list[list[tuple[int, list[int]]]] = [[] for _ in range(self.workers)]
        loads = [0.0] * self.workers
        for part, cost, index in sorted(pool, key=lambda one: (-len(one[0]) * one[1], one[2], one[0])):
            worker = loads.index(min(loads))
            dealt[worker].append((index, part))
            loads[worker] += len(part) * cost
        return [[part for _, part in sorted(own)] for own in dealt]

    def share(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """Let every rank run the model for its share of some items, and give all of them every result, in the items' order.

        Args:
            items: the same on every rank.
            work: one result for each item that it is given; plain data, or tensors on the CPU.
        """
        return list(work(list(items))) if items else []

    def spread(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """As :meth:`share`, for work that does not run the model."""
        return self.share(items, work)

    def share_rows(self, shares: Sequence[Sequence[int]], work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Gather tensors of which every rank makes the rows of its own share.

        Args:
            shares: positions of every worker's items; together each position from 0 on once.
            work: returns tensors ``[m, ...]`` for this rank's share, alike on all ranks but for ``m``.

        Returns:
            The same tensors over all items, ``[n, ...]``.
        """
        (own,) = shares
        return tuple(_placed(part, own) for part in work())

    def filled(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """This worker's share, or the first part of another one where it is empty, whose results are not looked at.

        So no rank ever has to know what a row looks like that it does not have.
        """
        return list(shares[self.worker]) or [next(part for share in shares for part in share)]

    def sums(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all ranks, in place."""

    def of_first(self, value: T) -> T:
        """The first rank's value, plain data, on every rank."""
        return value

    def of(self, rank: int, tensors: Sequence[Tensor] | None) -> list[Tensor]:
        """One rank's tensors on every rank; what the others give is not looked at."""
        assert tensors is not None
        return list(tensors)

    def overwrite(self, tensors: Sequence[Tensor]) -> None:
        """Put the first rank's numbers into tensors that have the same shape on every rank, in place."""

    def everyone(self, value: T) -> list[T]:
        """Every rank's value, plain data, by rank."""
        return [value]

    def agree(self, error: Exception | None = None) -> None:
        """Go on only if every rank goes on.

        Args:
            error: why this rank cannot; it is raised here, and the others raise their own account of it.

        Raises:
            Rejected: on all ranks, where ranks could only not write the batch.
            RankFailed: on the others, where one cannot go on.
        """
        if error is not None:
            raise error

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside is done on every rank, or has failed on every rank; see :meth:`agree`."""
        yield

    def first_does(self, act: Callable[[], object]) -> None:
        """Let the first rank write a file; where it cannot, nobody goes on."""
        with self.together():
            if self.first:
                act()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Ranks that hold parts of a model go through what is inside one after another: whole, it is there but once."""
        yield

    def leave(self) -> None:
        """This process acts alone from here on: the others are gone, or it is about to go itself."""


def _placed(rows: Tensor, positions: Sequence[int]) -> Tensor:
    """Rows in the order of their positions."""
    back = sorted(range(len(positions)), key=lambda at: positions[at])
    return rows if back == list(range(len(back))) else rows[back]
