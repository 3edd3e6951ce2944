"""The command line of a pre-training: one configuration of trainer, model and data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lit_edit.errors import EditError
from lit_edit.options.command import command
from lit_edit.options.parser import Parser, SentenceCLI
from lit_edit.pretraining.module import Pretrainer, PretrainingData
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint, renewed every so many steps and when the trainer is about to stop before its end.

    Args:
        path: the file.
        every: steps between two.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write it; here, where the epoch still counts as unfinished, because later it would not be gone on with."""
        if trainer.should_stop or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)


class PretrainCLI(SentenceCLI):
    """Parses one configuration of trainer, model and data; it has no sub-commands, because all it does is train."""

    def add_arguments_to_parser(self, parser: Parser) -> None:  # type: ignore[override]
        """Checkpoints, and where to go on from."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint to go on from, or 'last'")
        parser.add_argument(
            "--checkpoint_every", type=int | None, default=None, help="steps between two checkpoints; null: none"
        )

    @property
    def checkpoint(self) -> Path | None:
        """Where the checkpoint of the training lies, below the trained model; ``None`` if the model goes nowhere."""
        folder = self._get(self.config, "model.export_to")
        return None if folder is None else Path(folder) / "checkpoints" / "last.ckpt"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the safe checkpoint format, and the checkpoints if they are wanted."""
        given = self._get(self.config_init, "trainer", default={})
        kwargs["plugins"] = [*(given.get("plugins") or []), SafetensorsCheckpointIO()]
        every = self._get(self.config, "checkpoint_every")
        if every is not None:
            if every < 1 or self.checkpoint is None:
                raise EditError(f"--checkpoint_every is {every}; it is at least 1, and needs --model.export_to beside it")
            kwargs["callbacks"] = [*(given.get("callbacks") or []), LastCheckpoint(self.checkpoint, every)]
            kwargs["enable_checkpointing"] = True
        return super().instantiate_trainer(**kwargs)

    def begins_at(self) -> str | None:
        """The checkpoint to go on from; ``None`` for the beginning.

        Raises:
            EditError: if there is no such file.
        """
        path: str | None = self.config["ckpt_path"]
        if path == "last" and self.checkpoint is not None:
            path = str(self.checkpoint)
        if path is not None and not Path(path).is_file():
            # Lightning would take a missing name for one of its own keywords.
            raise EditError(f"there is no checkpoint {path} to go on from; check --ckpt_path, or leave it out")
        return path


def train(
    model: type[Pretrainer], data: type[PretrainingData], prog: str, argv: Sequence[str] | None = None, **defaults: Any
) -> PretrainCLI:
    """Train as the configuration says.

    Args:
        model: the module's class.
        data: the data module's class.
        prog: the command, for its help.
        argv: command line without the program's name; ``None`` takes the process's own.
        defaults: of the trainer.

    Returns:
        The command line with trainer, model and data.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # it compares with the whole command line
    with command():
        cli = PretrainCLI(
            model,
            data,
            run=False,
            save_config_callback=None,  # the model card records the settings
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, **defaults},
            parser_kwargs={"prog": prog},
            args=None if argv is None else list(argv),
        )
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.begins_at(), weights_only=True)
    return cli
