"""What a plan says, as plain frozen data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One thing that takes room."""

    name: str
    bytes: int
    note: str = ""
    """From what it was computed."""


@dataclass(frozen=True)
class Phase:
    """One phase of a run and everything that is held at its largest moment."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Sum of its parts."""
        return sum(part.bytes for part in self.parts)


OUTSIDE = 1.15
"""Memory of a process for every byte of its parts: with what libraries, allocator and kernels hold besides tensors."""


@dataclass(frozen=True)
class Memory:
    """Memory of the busiest device."""

    device: str
    phases: tuple[Phase, ...]
    available: int
    """Bytes there are for one process."""
    ranks_here: int = 1
    """Processes that share :attr:`available` (on CPUs)."""

    @property
    def largest(self) -> Phase:
        """The phase that decides."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def fits(self) -> bool:
        """Whether the largest phase fits, with :data:`OUTSIDE` to spare."""
        return self.largest.bytes <= self.room

    @property
    def room(self) -> int:
        """Bytes that the parts of one process may come to."""
        return int(self.available / (OUTSIDE * self.ranks_here))


@dataclass(frozen=True)
class Disk:
    """What a run writes."""

    parts: tuple[Part, ...]
    free: int
    """Free bytes where the run folder lies."""
    per_batch: int
    """Bytes that every batch adds to the journal."""

    @property
    def bytes(self) -> int:
        """Sum of its parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.bytes <= self.free


@dataclass(frozen=True)
class Work:
    """Floating point operations of one phase of the whole stream, on the busiest rank."""

    phase: str
    model: float = 0.0
    """In the model's dtype."""
    single: float = 0.0
    """Products in float32 beside the model."""
    double: float = 0.0
    """Products and triangular solves in float64."""
    factors: float = 0.0
    """Factorisations in float64."""
    seconds: float | None = None
    """By the calibration; ``None`` without one."""

    @property
    def operations(self) -> float:
        """All of them."""
        return self.model + self.single + self.double + self.factors


@dataclass(frozen=True)
class Rates:
    """Operations a second that this device does, by a few products at the sizes of the run."""

    model: float
    single: float
    double: float
    factors: float


@dataclass(frozen=True)
class Cached:
    """Whether something that is kept between runs is there already."""

    name: str
    layers: dict[int, bool] | None
    """By layer; ``None`` where it cannot be known."""
    note: str


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    model: dict[str, Any]
    stream: dict[str, Any]
    memory: Memory
    disk: Disk
    work: tuple[Work, ...]
    rates: Rates | None
    cached: tuple[Cached, ...]
    advice: tuple[str, ...]
    """The nearest settings that fit, where the run does not."""
    notes: tuple[str, ...]
    """What was assumed."""

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory.fits and self.disk.fits

    @property
    def seconds(self) -> float | None:
        """Time of the whole run, ``None`` without a calibration."""
        if any(work.seconds is None for work in self.work):
            return None
        return sum(work.seconds or 0.0 for work in self.work)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON, sums included."""
        found = asdict(self)
        for phase, said in zip(self.memory.phases, found["memory"]["phases"], strict=True):
            said["bytes"] = phase.bytes
        found["memory"] |= {"largest": self.memory.largest.name, "fits": self.memory.fits}
        found["disk"] |= {"bytes": self.disk.bytes, "fits": self.disk.fits}
        for work, said in zip(self.work, found["work"], strict=True):
            said["operations"] = work.operations
        return {**found, "fits": self.fits, "seconds": self.seconds}
