"""What became of one batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.request import EditBatch, EditRequest, SetAside


@dataclass
class BatchOutcome:
    """What became of one batch: the journal's record and the callbacks' view of it."""

    batch: EditBatch
    edited: tuple[EditRequest, ...] = ()
    """Requests that were written, in stream order."""
    set_aside: list[SetAside] = field(default_factory=list)
    """Requests of this batch that could not be tokenised, with reasons."""
    rejected: str | None = None
    """Why the whole batch was undone; ``None`` if it was written."""
    loss: float = float("nan")
    """Mean target loss at the end of the target optimisation."""
    probability: float = float("nan")
    """Mean probability of the target tokens reached by the target optimisation."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Norms, shares and times of the step, by logged name."""
    deltas: dict[int, Delta] = field(default_factory=dict)
    """What was written by layer; without a layer whose change has no thin factors (minus the gradient of its master then)."""
    keys: dict[int, Tensor] = field(default_factory=dict)  # [N, I]
    """The keys that were written to, by layer; of editors that write to keys."""
