"""Starting the other ranks of a machine, and not leaving anybody behind when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

GRACE = 30.0
"""Seconds in which a run whose rank has ended may end in good order before it is killed."""


class StreamLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of the same command once per device, with another idea of what to do when a rank ends.

    Lightning kills the first rank with SIGKILL as soon as it sees another one gone. Here the first rank is given time to save
    what stands and to say in a sentence what happened; only where it hangs, in an exchange that will never be answered, it is
    killed. And a rank whose first rank is gone does not live on.
    """

    watch: Watch | None = None
    """What looks after the ranks that were started here."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other ranks of this machine, unless somebody else did, and go on with ``function``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self.watch = Watch(self.procs)
            self.watch.start()
        elif _started_by_us():
            ParentWatch().start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class Watch(threading.Thread):
    """Tells of a rank that ended badly, and ends the run if it does not do so itself.

    Args:
        ranks: the other ranks of this machine, from 1.
        grace: see :data:`GRACE`.
        end: ends this process; for tests.
    """

    def __init__(self, ranks: Sequence[subprocess.Popen[bytes]], grace: float = GRACE, end: Callable[[], None] | None = None):
        super().__init__(daemon=True, name="lit-edit-watch")
        self.ranks, self.grace = ranks, grace
        self.end = end or _die
        self._lock, self._told = threading.Lock(), False

    def tell(self, wait: float = 0.0) -> bool:
        """Say, once, which rank ended badly.

        Args:
            wait: seconds to wait for one that is about to.

        Returns:
            Whether one did.
        """
        deadline = time.monotonic() + wait
        while True:
            with self._lock:
                for number, rank in enumerate(self.ranks, start=1):
                    if rank.poll():
                        if not self._told:
                            said = f"rank {number} (process {rank.pid}) ended by {_cause(rank.returncode)}"
                            print(f"lit-edit: {said}", file=sys.stderr, flush=True)
                        self._told = True
                        return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def run(self) -> None:
        """Look every half second."""
        while not self.tell() and any(rank.poll() is None for rank in self.ranks):
            time.sleep(0.5)
        if not any(rank.returncode for rank in self.ranks):
            return
        deadline = time.monotonic() + self.grace
        while time.monotonic() < deadline:
            time.sleep(0.5)
        for other in self.ranks:
            if other.poll() is None:
                other.kill()
        self.end()


class ParentWatch(threading.Thread):
    """Ends a process that another one has started for itself, once that one is gone.

    Args:
        grace: seconds it has left, see :data:`GRACE`.
        asking: send it SIGTERM first; a rank that waits for its first rank in vain would not hear it.
    """

    def __init__(self, grace: float = GRACE, asking: bool = False) -> None:
        super().__init__(daemon=True, name="lit-edit-parent-watch")
        self.parent, self.grace, self.asking = os.getppid(), grace, asking

    def run(self) -> None:
        """Look every half second."""
        while os.getppid() == self.parent:
            time.sleep(0.5)
        if self.asking:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.grace)
        _die()


def _started_by_us() -> bool:
    """Whether this is a rank that Lightning started beside the first one, not torchrun and not SLURM."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and not {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"} & set(os.environ)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _die() -> None:
    """End without asking: an exchange that hangs cannot be interrupted otherwise."""
    os.kill(os.getpid(), signal.SIGKILL)
