"""What a plan has to know of a run besides its model and its stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["one", "replicated", "sharded"]


@dataclass(frozen=True)
class RunSettings:
    """Options of a run that decide what it costs; the defaults are those of ``lit-edit fit``."""

    run_dir: str = "runs/edit"
    """Folder for everything the run writes."""
    device: str = "auto"
    """``cpu``, ``cuda``, or what is there."""
    ranks: int = 1
    """Processes that share the stream, one to a device."""
    nodes: int = 1
    """Machines that they are spread over."""
    strategy: Strategy = "one"
    """How they share it."""
    baseline: bool = True
    """Whether the unedited model is scored first."""
    final: bool = True
    """Whether all edits are scored at the end."""
    val_every: int = 5
    """Batches between two validations; 0 for none while the stream runs."""
    checkpoint_every: int = 10
    """Batches between two checkpoints; 0 for one at the end only."""
    checkpoints_kept: int = 2
    """Checkpoints that stay, beside the one being written; -1 for all."""
    factors: bool = True
    """Whether the journal keeps what every batch changed."""
    drift_every: int = 1
    """Batches between two looks at the spectra; 0 for none."""
    drift_full_every: int = 10
    """Looks between two that find all singular values; 0 for none."""
    drift_figures: bool = True
    """Whether these draw two figures per layer."""
    remembered_keys: int = 2048
    """Earlier keys of a layer that new ones are compared with."""
