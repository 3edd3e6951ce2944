"""The command line: a LightningCLI whose model edits and whose data are facts."""

from __future__ import annotations

import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from pydoc import locate
from typing import Any, cast

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_edit.board import EditBoard, write_text
from lit_edit.callbacks import (
    BoardKeeper,
    CollapseGuard,
    ImmediateScores,
    JournalKeeper,
    Predictions,
    ReplicaCheck,
    Report,
    SpectralDrift,
    StreamCheckpoint,
)
from lit_edit.data import EditStream
from lit_edit.errors import EditError
from lit_edit.module import ContinualEditor
from lit_edit.options.arguments import ids
from lit_edit.options.command import command, ending, requeued
from lit_edit.options.parser import VERBS, SentenceCLI
from lit_edit.progress import Progress, QuietProgress, fitting
from lit_edit.progress.messages import only_warnings
from lit_edit.runs.checkpoint_folder import newest, renew_last
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO, header, prove
from lit_edit.runs.paths import check_writable, named, unused
from lit_edit.runs.row_logger import RowLogger
from lit_edit.runs.run_settings import settings_of
from lit_edit.strategies import of_several, register

DESCRIPTION = "Continual knowledge editing of language models; 'lit-edit --help' lists all verbs."


class _SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration to ``config.yaml`` in the run folder, and to TensorBoard's Text tab."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See the class; scoring a finished run leaves the run's own configuration alone."""
        path = Path(trainer.default_root_dir, "config.yaml")
        if stage != "fit" and path.exists():
            return
        config = self.config.clone()
        # Run again in another folder, it must not write into this one.
        if Path(str(config.checkpoint.dirpath)) == Path(str(config.run_dir), "checkpoints"):
            config.checkpoint.dirpath = None
        config.trainer.default_root_dir = None
        if "ckpt_path" in config:
            config.ckpt_path = None
        text = self.parser.dump(config, skip_none=False)
        path.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                told = self.parser.dump(config, skip_none=True)  # what is null is not set
                write_text(logger, "config", f"```yaml\n{told}\n```", 0)


class EditCLI(SentenceCLI):
    """``fit validate test predict`` over :class:`ContinualEditor` and :class:`EditStream`; a run writes to ``--run_dir``."""

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        with ExitStack() as self._quiet:
            self._start(args, run)

    def _start(self, args: list[str] | None, run: bool) -> None:
        super().__init__(
            ContinualEditor,
            EditStream,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 1,  # one epoch is one stream
                "devices": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,  # nothing trains in the usual sense
                "use_distributed_sampler": False,  # it would shuffle the stream
                "log_every_n_steps": 1,
                "check_val_every_n_epoch": None,  # val_check_interval counts batches
                "val_check_interval": 5,
            },
            parser_kwargs={"description": DESCRIPTION, **{verb: {"description": text} for verb, text in VERBS.items()}},
            auto_configure_optimizers=False,
            args=args,
            run=run,
        )

    def _set_seed(self) -> None:
        """The first thing to say something, so what is said is settled before it."""
        chosen = self._get(self.config, "progress")
        if chosen is not None and issubclass(cast(type, locate(chosen.class_path)), QuietProgress):
            self._quiet.enter_context(only_warnings())
        super()._set_seed()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that belong to a run rather than to model, data or trainer."""
        parser.add_argument("--run_dir", type=str, default="runs/edit", help="folder for everything the run writes")
        parser.add_argument("--baseline", type=bool, default=True, help="score the unedited model first")
        parser.add_argument("--final", type=bool, default=True, help="score all edits at the end, not only data.review of them")
        parser.add_argument("--journal.factors", type=bool, default=True, help="keep what every batch changed, for replays")
        parser.add_argument(
            "--journal.without", type=ids, default=[], help="ids of requests to leave out of the stream, e.g. [5, 7]"
        )
        parser.add_argument(
            "--progress",
            type=Progress | None,
            default=None,
            help="how far the run has come: EditProgressBar (bars), PlainProgress (lines for a log file) or QuietProgress "
            "(warnings and the table only); bars in a terminal and lines elsewhere unless it is given",
        )
        parser.add_lightning_class_args(SpectralDrift, "drift")
        parser.add_lightning_class_args(StreamCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ReplicaCheck, "replicas")
        parser.set_defaults(
            {
                "checkpoint.filename": "batch-{step}",
                "checkpoint.every_n_train_steps": 10,
                "checkpoint.save_last": True,
                "checkpoint.save_on_exception": True,
                "checkpoint.enable_version_counter": False,
            }
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, ``trainer.fit`` and so on."""
        return LightningCLI.subcommands()

    def _parse_ckpt_path(self) -> None:
        """Do not merge a checkpoint's hyper-parameters over the command line: what the user says counts."""

    # ------------------------------------------------------------------------------------------------ building the run

    def _chosen(self, key: str) -> Any:
        return self._get(self.config, key)

    def before_instantiate_classes(self) -> None:
        """Fix the run folder before anything is built."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        folder = named(config["run_dir"], "--run_dir")
        edits = self.subcommand in (None, "fit")
        self._begins: int | None = None  # requests that lie behind the checkpoint
        self._starts_over = False
        if of_several():
            self._follow(config, folder)
            return
        if edits and not config.get("ckpt_path") and (folder / "journal.jsonl").exists():
            new = unused(folder)
            print(
                f"{folder} holds an earlier run, which stays; this one goes to {new} (to go on with it, add --ckpt_path last)",
                file=sys.stderr,
            )
            folder = new
        check_writable(folder)
        config["run_dir"] = str(folder)
        config["trainer"]["default_root_dir"] = str(folder)
        if config["checkpoint"]["dirpath"] is None:
            config["checkpoint"]["dirpath"] = str(folder / "checkpoints")
        if config.get("ckpt_path") == "last":
            config["ckpt_path"] = self._last(Path(config["checkpoint"]["dirpath"]), edits)
        elif config.get("ckpt_path") is not None:
            path = named(config["ckpt_path"], "--ckpt_path")
            self._begins = int(prove(path).get("position") or 0) if edits else None

    def _follow(self, config: Any, folder: Path) -> None:
        """Another rank than the first one writes nothing, so all it has to find is the checkpoint; the first one proves it."""
        config["trainer"]["default_root_dir"] = str(folder)
        config["checkpoint"]["dirpath"] = config["checkpoint"]["dirpath"] or str(folder / "checkpoints")
        if config.get("ckpt_path") == "last":
            kept = Path(config["checkpoint"]["dirpath"])
            self._starts_over = not any(kept.glob("[!.]*.ckpt"))
            config["ckpt_path"] = None if self._starts_over else str(kept / "last.ckpt")

    def _last(self, folder: Path, edits: bool) -> str | None:
        """The checkpoint that ``last`` stands for: Lightning would take the newest file, and none with a mere warning."""
        found = newest(folder)
        if found is None and not edits:
            raise EditError(f"there is no checkpoint in {folder} to score; check --run_dir, or leave --ckpt_path out")
        if found is None:
            self._starts_over, self._begins = True, 0
            print(f"{folder} holds no checkpoint yet, so this run starts from the beginning", file=sys.stderr)
            return None
        for sentence in found.passed_over:
            print(f"{sentence}; passed over", file=sys.stderr)
        if found.passed_over:
            print(f"using {found.path}, after {found.batches} batches", file=sys.stderr)
        if not edits:
            return str(found.path)
        self._begins = int(header(found.path).get("position") or 0)
        renew_last(found.path)
        return str(found.path.with_name("last.ckpt"))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add loggers, the safe checkpoint format and the project's callbacks, unless the user brought their own."""
        folder = str(self._chosen("run_dir"))
        register()
        given = self._get(self.config_init, "trainer", default={})
        if given.get("logger") is None:
            # Scoring a finished run must not draw into the run's own curves.
            logs = Path(folder) if self.subcommand in (None, "fit") else Path(folder, str(self.subcommand))
            kwargs["logger"] = [
                # What a run logged behind the checkpoint that this one goes on from is logged again, and hidden there.
                EditBoard(logs, name="", version="tensorboard", purge_step=self._begins and self._begins + 1),
                # A CSV logger empties its folder when it starts: a resumed run takes the next one.
                RowLogger(logs, name="", version=unused(logs / "csv").name),
            ]
        kwargs["plugins"] = [*(given.get("plugins") or []), SafetensorsCheckpointIO()]
        alone = given.get("devices") in (1, "1") and given.get("num_nodes") in (None, 1)
        if given.get("strategy") in (None, "auto") and not alone:
            kwargs["strategy"] = "replicated"  # Lightning's own choice would give every process facts of its own
        if SLURMEnvironment.detect():
            # Lightning's way to have a job requeued saves inside of the signal handler, in the middle of whatever runs.
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))
        # The user's own look once the batch is counted and its immediate scores are in: theirs may take long.
        keeper = JournalKeeper(folder, self._chosen("journal.factors"), self._chosen("journal.without"))
        callbacks = [keeper, BoardKeeper(self._chosen("final")), ImmediateScores(), *(given.get("callbacks") or [])]
        callbacks += [Report(folder), Predictions(folder)]
        own = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if given.get("enable_progress_bar") is not False and not own:
            callbacks.append(self._get(self.config_init, "progress") or fitting())
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    # ------------------------------------------------------------------------------------------------ around the verbs

    def _report(self) -> Report:
        trainer: Any = self.trainer  # Lightning sets its callbacks where no type checker looks
        return next(callback for callback in trainer.callbacks if isinstance(callback, Report))

    def before_fit(self) -> None:
        """Score the unedited model, at step 0."""
        self.model.starts_over = self._starts_over
        self.model.settings = settings_of(self.config[self.subcommand] if self.subcommand else self.config)
        if self._chosen("baseline") and not self._chosen("ckpt_path"):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Score the edited model and print the table."""
        run: Any = self.trainer  # Lightning sets its callbacks where no type checker looks
        if run.interrupted or any(isinstance(callback, CollapseGuard) and callback.paused for callback in run.callbacks):
            return  # the run that goes on will score all of it
        report, review = self._report(), self.datamodule.review
        if self._chosen("final"):
            self.datamodule.review = None  # all edits, not a sample of them
        done = report.rows and report.rows[-1]["batches"] == self.trainer.global_step
        if not done or (self._chosen("final") and self.model.scores.protocol != "final"):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self.datamodule.review = review
        table = report.write(self.trainer, self.model)
        if not run.is_global_zero:
            return
        print(f"\n{table}")
        folder = self._chosen("run_dir")
        print(f"Everything of this run is in {folder}; look at it with: tensorboard --logdir {folder}")


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run goes on in its own folder
    with ending(), command(), requeued():
        EditCLI(args)
