"""What all parts of the benchmark are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stopwatch import Clock, Stopwatch

Found = dict[str, Any]
"""Numbers of one part, as plain JSON; what stands under ``ratios`` goes to the top of the file."""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    clock: Clock
    quick: bool = False
    """Tiny sizes: whether everything runs, not how fast."""
    seed: int = 0
    counterfact: Path | None = None
    """A file of CounterFact records; without it requests are drawn at random."""
    vocab: Path | None = None
    merges: Path | None = None
    """GPT-2's tokenizer, needed with CounterFact."""

    def watch(self) -> Stopwatch:
        """A new stopwatch."""
        return Stopwatch(self.clock)

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full


def spread(count: int, of: int, turn: int = 0, turns: int = 1) -> list[int]:
    """``count`` indices spread evenly over ``of``, others in every turn."""
    return [int((number + turn / turns) * of / count) for number in range(count)]


def median(values: Sequence[float]) -> float:
    """The middle one of an odd number, the mean of the two in the middle of an even one."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
