"""Processes that share the work of one stream, and stay together whatever happens to one of them.

Every rank goes through the same program: what is shared out is what the model has to be run for, and what comes of it is
gathered before anything else happens, so that all that follows is on every rank what it is in a run of one process.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_edit.errors import EditError, Rejected

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
            part, cost, index = pool.pop(max(range(len(pool)), key=lambda at: len(pool[at][0]) * pool[at][1]))
            middle = len(part) // 2
            pool += [(part[:middle], cost, index), (part[middle:], cost, index)] if middle else [(part, 0.0, index)]
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


class ProcessRanks(Ranks):
    """Ranks over ``torch.distributed``, whatever its backend.

    Before anything is exchanged, ranks tell each other with one number whether they are well (:meth:`agree`). A rank that
    fails takes part in the exchange that comes next for the others, so that nobody waits for somebody who has given up. Of a
    rank that died, the backend tells: at once (gloo) or after its time-out (NCCL).

    Args:
        device: where tensors have to be to be exchanged; the CPU for gloo, this rank's GPU for NCCL.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.worker, self.workers = self.rank, self.size
        self._told: Exception | None = None

    # ------------------------------------------------------------------------------------------------ sharing

    def share(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """See :meth:`Ranks.share`."""
        if not items:
            return []
        if self.alone:
            raise self._told or RankFailed(f"rank {self.rank} of {self.size} is alone")
        with self.together():
            found = list(work([items[at] for at in self.filled(self.strides(len(items)))]))
        parts = self._gathered(found)
        return [parts[at % self.size][at // self.size] for at in range(len(items))]

    def share_rows(self, shares: Sequence[Sequence[int]], work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """See :meth:`Ranks.share_rows`."""
        if self.alone:  # the others are gone: whoever still asks gets no answer
            raise self._told or RankFailed(f"rank {self.rank} of {self.size} is alone")
        with self.together():
            found = work()
        return tuple(self._rows(part, shares) for part in found)

    def _rows(self, mine: Tensor, shares: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(share) for share in shares)
        padded = mine.new_zeros(longest, *mine.shape[1:])
        own = len(shares[self.worker])
        padded[:own] = mine[:own]  # a rank without a share has a row that nobody looks at
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(parts, padded)
        whole = mine.new_empty(sum(len(share) for share in shares), *mine.shape[1:])
        for share, part in zip(shares, parts, strict=True):
            whole[list(share)] = part[: len(share)]
        return whole

    def sums(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.sums`."""
        self.agree()
        for tensor in [] if self.alone else tensors:
            with self._exchange():
                dist.all_reduce(tensor)

    # ------------------------------------------------------------------------------------------------ telling

    def of_first(self, value: T) -> T:
        """See :meth:`Ranks.of_first`."""
        if self.alone:
            return value
        self.agree()
        kept: list[Any] = [value]
        with self._exchange():
            dist.broadcast_object_list(kept, 0, device=self.device)
        return kept[0]

    def of(self, rank: int, tensors: Sequence[Tensor] | None) -> list[Tensor]:
        """See :meth:`Ranks.of`."""
        if self.alone:
            return super().of(rank, tensors)
        self.agree()
        shapes: list[Any] = [[(part.shape, part.dtype) for part in tensors or ()]]
        with self._exchange():
            dist.broadcast_object_list(shapes, rank, device=self.device)
        if self.rank == rank:
            found = [part.to(self.device).contiguous() for part in tensors or ()]
        else:
            found = [torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in shapes[0]]
        for part in found:
            with self._exchange():
                dist.broadcast(part, rank)
        return found

    def overwrite(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.overwrite`."""
        self.agree()
        for tensor in [] if self.alone else tensors:
            whole = tensor.contiguous()
            with self._exchange():
                dist.broadcast(whole, 0)
            if whole is not tensor:
                tensor.copy_(whole)

    def everyone(self, value: T) -> list[T]:
        """See :meth:`Ranks.everyone`."""
        if self.alone:
            return super().everyone(value)
        self.agree()
        return self._gathered(value)

    def _gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(found, value)
        return found

    # ------------------------------------------------------------------------------------------------ failing

    def agree(self, error: Exception | None = None) -> None:
        """See :meth:`Ranks.agree`."""
        if self.alone:
            return super().agree(error)
        code = torch.tensor([0 if error is None else 1 if isinstance(error, Rejected) else 2], device=self.device)
        codes = [torch.empty_like(code) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(codes, code)
        worst = max(int(other) for other in codes)
        if not worst:
            return None
        said = self._gathered(None if error is None else _said(error))
        rank = next(at for at, other in enumerate(codes) if int(other) == worst)
        told: Exception
        if worst == 1:
            told = Rejected(said[rank] if all(said) else f"rank {rank}: {said[rank]}")
        else:
            self.leave()
            told = error if error is not None and int(code) == 2 else RankFailed(f"rank {rank} cannot go on: {said[rank]}")
        self._told = told
        raise told from (error if told is not error else None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """See :meth:`Ranks.together`."""
        try:
            yield
        except Exception as error:
            if error is self._told or self.alone:
                raise
            self.agree(error)
        else:
            self.agree()

    def leave(self) -> None:
        """See :meth:`Ranks.leave`."""
        self.alone = True

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            self.leave()
            self._told = RankFailed(
                f"rank {self.rank} of {self.size} lost the others ({_first(error)}): one of them has ended, and its own words "
                "say why, or hangs; go on with --ckpt_path last"
            )
            raise self._told from error


class LockstepRanks(ProcessRanks):
    """Ranks that hold a part of the model each and can only run it together, all of them on the same rows.

    What runs the model is done by everyone, in the same order; only what does not is shared.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.worker, self.workers = 0, 1

    def share(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """See :meth:`Ranks.share`."""
        with self.together():
            return Ranks.share(self, items, work)

    def spread(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """See :meth:`Ranks.spread`."""
        self.worker, self.workers = self.rank, self.size
        try:
            return super().share(items, work)
        finally:
            self.worker, self.workers = 0, 1

    def share_rows(self, shares: Sequence[Sequence[int]], work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """See :meth:`Ranks.share_rows`."""
        with self.together():
            return Ranks.share_rows(self, shares, work)

    def sums(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.sums`: everyone has added up everything."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """See :meth:`Ranks.in_turn`."""
        for _ in range(self.rank):
            self.agree()
        with self.together():
            yield
        for _ in range(self.rank + 1, self.size):
            self.agree()


def _placed(rows: Tensor, positions: Sequence[int]) -> Tensor:
    """Rows in the order of their positions."""
    back = sorted(range(len(positions)), key=lambda at: positions[at])
    return rows if back == list(range(len(back))) else rows[back]


def _first(error: Exception) -> str:
    """What a backend has to say, without the place in its source and what it advises."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", first).split(". ")[0].rstrip(".")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EditError | Rejected) else f"{type(error).__name__}: {error}"
