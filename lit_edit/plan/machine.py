"""What there is: memory of this process's machine or of its GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lit_edit.errors import EditError


def device_of(wanted: str) -> str:
    """``cpu`` or ``cuda``.

    Args:
        wanted: ``--trainer.accelerator``.

    Raises:
        EditError: for one that edits cannot run on or that is not there.
    """
    if wanted in ("auto", "gpu", "cuda"):
        if torch.cuda.is_available():
            return "cuda"
        if wanted != "auto":
            raise EditError(f"--trainer.accelerator is {wanted}, and this machine has no GPU that torch can use; plan it there")
        return "cpu"
    if wanted != "cpu":
        raise EditError(f"--trainer.accelerator is {wanted}; edits run on cpu or gpu")
    return "cpu"


def resident() -> int:
    """Bytes of memory that this process holds now, and nothing but its own."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def available(device: str) -> int:
    """Bytes that a run would find: what the machine, or the group of processes this one belongs to, has left.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    left = _of_machine()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            left = min(left, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(left, 0) + resident()


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
