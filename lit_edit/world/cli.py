"""``lit-edit pretrain --config configs/pretrain_world.yaml``: train the small model and write it to a folder."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.cli import command
from lit_edit.parser import SentenceCLI
from lit_edit.world.pretrain import WorldData, WorldPretrainer


class PretrainCLI(SentenceCLI):
    """Parses one configuration of trainer, model and data; it has no sub-commands, because all it does is train."""


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the configuration says.

    Args:
        argv: command line without the program's name; ``None`` takes the process's own.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    with command():
        cli = PretrainCLI(
            WorldPretrainer,
            WorldData,
            run=False,
            save_config_callback=None,  # the model card records the settings; nothing else is left behind
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=None if argv is None else list(argv),
        )
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
