"""A small stream under the command line over several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rig import Rig
from safetensors.torch import load_file
from stream import write_facts
from tiny import save_tiny

FACTS, BATCH = 12, 5
"""Batches of 5, 5 and 2: shares of unequal length, and fewer requests than four ranks."""


class Streams(Rig):
    """Runs of one stream over one or several ranks, each in a folder of its own."""

    @classmethod
    def build(cls, folder: Path, server: Any) -> Streams:
        save_tiny(folder / "model", "gpt2")
        write_facts(folder / "facts.jsonl", FACTS)
        return cls(folder, server)

    def over(self, size: int, name: str, *more: str, **how: Any) -> dict[str, Any]:
        """Run (or go on with) the stream on so many ranks."""
        spread = ["--data.batch_size", str(BATCH), "--trainer.devices", str(size), "--replicas.every_n_batches", "1"]
        return self.go(name, *spread, *more, ranks=size, dump=str(self.folder / name / "held"), **how)

    def ended(self, size: int, name: str, *more: str, **how: Any) -> list[dict[str, torch.Tensor]]:
        """What every rank holds after a run that nothing happened to."""
        answer = self.over(size, name, *more, **how)
        assert answer["codes"] == [0] * size, "\n".join(self.heard(name, rank) for rank in range(size))
        return [load_file(self.folder / name / f"held-{rank}") for rank in range(size)]

    def heard(self, name: str, rank: int) -> str:
        """What a rank has printed."""
        return (self.folder / name / f"said-{rank}").read_text()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit-equal."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a weight, in the Frobenius norm."""
    names = [name for name in one if name.startswith("masters.")]
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in names)
