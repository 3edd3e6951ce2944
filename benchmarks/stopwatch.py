"""Seconds by part of the work."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Clock = Callable[[], float]


class Stopwatch:
    """Adds up seconds under names; parts that run inside others are not counted twice.

    Args:
        clock: what is read.

    Attributes:
        seconds: by name. The seconds of a part leave out those of the parts measured inside it.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = wall if clock is None else clock
        self._inside: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the block takes."""
        self._inside.append(0.0)
        started = self._clock()
        try:
            yield
        finally:
            took = self._clock() - started
            self.seconds[name] += took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took

    def around(self, owner: Any, method: str, name: str) -> None:
        """Count every call of a method of one object."""
        plain: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return plain(*args, **kwargs)

        setattr(owner, method, timed)

    def total(self, *names: str) -> float:
        """Seconds of some parts, of all without names."""
        return sum(self.seconds[name] for name in names) if names else sum(self.seconds.values())


def wall() -> float:
    """Seconds on a clock that waits for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def process() -> float:
    """Seconds that the processor worked for this process, over all threads: what else the machine does hardly counts."""
    return time.process_time()


def seconds_of(clock: Clock, work: Callable[[], Any]) -> float:
    """What a call takes."""
    started = clock()
    work()
    return clock() - started


def peak_mib(device: torch.device) -> float:
    """Most memory so far in MiB: of the accelerator (since its last reset), else of this process (since it started)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
