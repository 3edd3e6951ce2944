"""Devices that are too small: models that take so many tokens at once, and operations that get no memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a capacity of 79.11 GiB"
    ),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
}
"""What torch's allocators say."""


@contextmanager
def tight(model: Any, tokens: int, error: str = "cuda", block: int | None = None) -> Iterator[list[int]]:
    """Make a model fail where it is called with more than so many tokens, padding included.

    Args:
        model: the model.
        tokens: most it takes.
        error: key of :data:`ERRORS`.
        block: fail there, in the middle of the pass; default: before its first block.

    Yields:
        How many tokens it was called with, one number for each pass, tokens of passes that failed as negative numbers.
    """
    sizes: list[int] = []
    part = model if block is None else model.transformer.h[block]
    own, inner = model.forward, part.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        sizes.append(ids.numel())
        if block is None:
            check()
        return own(*args, **kwargs)

    @functools.wraps(inner)
    def inside(*args: Any, **kwargs: Any) -> Any:
        check()
        return inner(*args, **kwargs)

    def check() -> None:
        if sizes and sizes[-1] > tokens:
            sizes[-1] *= -1
            raise ERRORS[error]()

    model.forward = forward
    if block is not None:
        part.forward = inside
    try:
        yield sizes
    finally:
        model.forward = own
        part.forward = inner


class Starved(TorchDispatchMode):
    """Inside of it, the ``nth`` operation of some name gets no memory (counted from 1).

    Args:
        name: part of the operation's name, ``aten.mm`` or ``linalg_cholesky``.
        nth: which one.
        error: key of :data:`ERRORS`.
    """

    def __init__(self, name: str, nth: int = 1, error: str = "cuda") -> None:
        super().__init__()
        self.name, self.nth, self.error, self.seen = name, nth, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.name in str(func):
            self.seen += 1
            if self.seen == self.nth:
                raise ERRORS[self.error]()
        return func(*args, **(kwargs or {}))
