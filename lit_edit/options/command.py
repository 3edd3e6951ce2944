"""What every command of the project runs in: classes are found by name, only news is told, a mistake is one sentence."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment

# Short class names resolve only for what is imported.
import lit_edit.board
import lit_edit.callbacks
import lit_edit.corpus
import lit_edit.data
import lit_edit.editors
import lit_edit.guards
import lit_edit.probes
import lit_edit.runs.row_logger
import lit_edit.statistics.whole_documents  # noqa: F401
from lit_edit.options.parser import told_as_error
from lit_edit.runs.interrupts import Terminated, ending_in_order
from lit_edit.strategies import of_several


def is_news(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning tells this run's user something (advertisements, absent hardware, one epoch do not)."""
    other = ("\N{ELECTRIC LIGHT BULB} Tip", "TPU available", "HPU available", "`Trainer.fit` stopped: `max_epochs=1`")
    return not record.getMessage().startswith(other)


@contextmanager
def command() -> Iterator[None]:
    """What every command of the project runs in: the user's own classes are found, only news is told.

    Raises:
        EditError: for a mistake that the user can repair, whatever library noticed it.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own editors are found from where the command is given
    # Facts about this project that Lightning warns of: a frozen model is in eval mode, text loaders need no workers.
    warnings.filterwarnings("ignore", message=".*in eval mode.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # every rank logs the numbers of all
    if of_several():
        warnings.simplefilter("ignore")  # the first rank says it
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_news)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the bar over a model's tensors would stand above the run's own
    try:
        yield
    except Exception as error:
        told = told_as_error(error)
        if told is None or told is error:
            raise
        raise told from None


@contextmanager
def ending() -> Iterator[None]:
    """SIGTERM ends the command in good order, with a line that says so.

    Raises:
        Terminated: after SIGTERM.
    """
    try:
        with ending_in_order(signal.SIGTERM):
            yield
    except Terminated as ended:
        print(f"lit-edit: ended by {signal.Signals(ended.number).name}", file=sys.stderr)
        raise


@contextmanager
def requeued() -> Iterator[None]:
    """Under SLURM, end in good order where the job's time is nearly over (SIGUSR1), and put the job back into the queue.

    ``#SBATCH --signal=SIGUSR1@120`` asks for the signal; the job's command says ``--ckpt_path last`` and goes on.
    """
    if not SLURMEnvironment.detect():
        yield
        return
    try:
        with ending_in_order(signal.SIGUSR1):
            yield
    except Terminated as ended:
        if ended.number == signal.SIGUSR1:
            array = os.environ.get("SLURM_ARRAY_JOB_ID")
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
            subprocess.run(["scontrol", "requeue", job], check=False)
        raise
