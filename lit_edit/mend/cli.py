"""``lit-edit train-mend --config configs/mend.yaml``: train MEND's hyper-network and write it to a file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.mend.data import PairData
from lit_edit.mend.training import MendTrainer
from lit_edit.options.command import command
from lit_edit.options.parser import Parser, SentenceCLI
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

DESCRIPTION = (
    "Train MEND's hyper-network on one model: it learns to turn the gradient of an edit into an update that edits and leaves "
    "other text alone. The result is one file, which 'lit-edit fit --model.editor MEND --model.editor.network FILE' uses."
)
SHOWN = {
    "edit_nll": "answer NLL at paraphrases",
    "prompt_nll": "answer NLL at the edit prompt",
    "prompt_accuracy": "edit prompt answered right",
    "paraphrase_accuracy": "paraphrases answered right",
    "locality_kl": "KL on other text",
}


class MendCLI(SentenceCLI):
    """Parses one configuration of trainer, model and data; it has no sub-commands, because all it does is train."""

    def add_arguments_to_parser(self, parser: Parser) -> None:  # type: ignore[override]
        """Where to go on from."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint of a training that was stopped")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the safe checkpoint format."""
        given = self._get(self.config_init, "trainer", default={})
        kwargs["plugins"] = [*(given.get("plugins") or []), SafetensorsCheckpointIO()]
        return super().instantiate_trainer(**kwargs)


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the configuration says and print what was measured on held-out edits.

    Args:
        argv: command line without the program's name; ``None`` takes the process's own.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # it compares with the whole command line
    with command():
        cli = MendCLI(
            MendTrainer,
            PairData,
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 1,  # one pass over the generated batches
                "devices": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "check_val_every_n_epoch": None,  # val_check_interval counts batches, and may exceed them
                "val_check_interval": 500,
            },
            parser_kwargs={"prog": "lit-edit train-mend", "description": DESCRIPTION},
            args=None if argv is None else list(argv),
        )
        path = cli.config["ckpt_path"]
        if path is not None and not Path(path).is_file():
            # Lightning would take a missing name for one of its own keywords.
            raise EditError(f"there is no checkpoint {path} to go on from; check --ckpt_path, or leave it out")
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path)
    if not cli.trainer.interrupted:
        print(report(cli.model))


def report(module: MendTrainer) -> str:
    """A table of what was measured before and after training, and where the network lies."""
    count = len(module.data.validation_pairs)
    lines = [f"\n{count} held-out edits, each alone; teacher-forced, mean over answer tokens", f"{'':32}untrained   trained"]
    for name, text in SHOWN.items():
        before = f"{module.before[name]:9.4f}" if module.before else f"{'-':>9}"
        lines.append(f"{text:32}{before} {module.after[name]:9.4f}")
    path = module.export_to
    lines.append(f"The network is in {path}; edit with it: --model.editor MEND --model.editor.network {path}")
    return "\n".join(lines)
