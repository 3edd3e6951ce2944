"""``lit-edit pretrain --config configs/pretrain_world.yaml``: train the small model and write it to a folder."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.pretraining.cli import train
from lit_edit.world.pretrain import WorldData, WorldPretrainer


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the configuration says.

    Args:
        argv: command line without the program's name; ``None`` takes the process's own.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    train(WorldPretrainer, WorldData, "lit-edit pretrain", argv)
