"""Ranks over ``torch.distributed``: what is sent between the processes of a run, and what happens when one of them fails."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_edit.errors import EditError, Rejected, first_line
from lit_edit.parallel.ranks import RankFailed, Ranks, S, T


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
        kept: list[T] = [value]
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


def _first(error: Exception) -> str:
    """What a backend has to say, without the place in its source and what it advises."""
    return re.sub(r"^\[[^\]]*\]\s*", "", first_line(error)).split(". ")[0].rstrip(".")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EditError | Rejected) else f"{type(error).__name__}: {error}"
