"""``lit-edit plan --config FILE [any option of fit]``: the command line of the plan."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lit_edit.cli import EditCLI
from lit_edit.errors import EditError
from lit_edit.options.command import command
from lit_edit.plan.planning import plan_run
from lit_edit.plan.settings import RunSettings, Strategy
from lit_edit.plan.text import told
from lit_edit.store import write_atomically


class PlanCLI(EditCLI):
    """The parser of ``lit-edit fit`` with options of its own; builds model and stream, and neither trainer nor folder."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args=args, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of ``fit``, and those of the plan."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--calibrate", type=bool, default=True, help="time a few products, to tell time from operations")
        parser.add_argument("--hash", type=bool, default=False, help="read the model's files, to know what the cache holds")
        parser.add_argument("--json", type=str | None, default=None, help="file that everything is written into")
        # Options that only say how a run is started, so that a run's own config.yaml can be given.
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="of fit; not looked at")
        parser.add_argument("--weights_only", type=bool | None, default=None, help="of fit; not looked at")

    def before_instantiate_classes(self) -> None:
        """Make no folder."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """There is nothing to train."""
        return None


def settings_of(config: Any) -> RunSettings:
    """What the options of a run say of it.

    Args:
        config: as the parser gives it.

    Raises:
        EditError: if a number of devices is not one.
    """
    trainer = config["trainer"]
    accelerator, nodes = str(trainer["accelerator"]), int(trainer["num_nodes"])
    ranks = _devices(trainer["devices"], accelerator) * nodes
    said = trainer["strategy"]
    name = str(said if isinstance(said, str) else getattr(said, "class_path", type(said).__name__)).lower()
    strategy: Strategy = "one" if ranks == 1 else "sharded" if "shard" in name or "modelparallel" in name else "replicated"
    every = trainer["val_check_interval"]
    checkpoint, drift = config["checkpoint"], config["drift"]
    return RunSettings(
        run_dir=config["run_dir"],
        device=accelerator,
        ranks=ranks,
        nodes=nodes,
        strategy=strategy,
        baseline=config["baseline"],
        final=config["final"],
        val_every=every if isinstance(every, int) and trainer["limit_val_batches"] != 0 else 0,
        checkpoint_every=int(checkpoint["every_n_train_steps"] or 0),
        checkpoints_kept=2 if checkpoint["save_top_k"] == 1 else int(checkpoint["save_top_k"]),
        factors=config["journal"]["factors"],
        drift_every=drift["every_n_batches"],
        drift_full_every=drift["full_every"],
        drift_figures=drift["figures"],
        remembered_keys=drift["remembered_keys"],
    )


def _devices(said: Any, accelerator: str) -> int:
    """How many processes a machine starts."""
    if isinstance(said, (list, tuple)):
        return len(said)
    if str(said) in ("auto", "-1"):
        import torch

        return torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 1
    try:
        found = int(said)
    except ValueError:
        raise EditError(f"--trainer.devices is {said!r}; it is a number of devices, a list of them, or auto") from None
    if found < 1:
        raise EditError(f"--trainer.devices is {found}; at least one device is needed")
    return found


def main(argv: Sequence[str]) -> int:
    """Plan, print, and leave with 0 where the run fits and 1 where it does not.

    Args:
        argv: the command line behind ``lit-edit plan``.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    # Lightning warns of arguments that are not the process's own: the verb has been taken off them.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
    with command():
        cli = PlanCLI(list(argv))
        config = cli.config
        plan = plan_run(cli.model, cli.datamodule, settings_of(config), config["calibrate"], config["hash"])
    print(told(plan))
    if config["json"]:
        write_atomically(Path(config["json"]), (json.dumps(plan.as_dict(), indent=1) + "\n").encode())
    return 0 if plan.fits else 1
