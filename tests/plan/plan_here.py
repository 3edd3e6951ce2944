"""``lit-edit plan`` as if the machine had less memory, by the clock of the processor. Started by planned.planned."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import torch

from lit_edit.__main__ import main
from lit_edit.plan import calibration, planning

if __name__ == "__main__":
    available, *arguments = sys.argv[1:]
    sys.argv = ["lit-edit", "plan", *arguments]
    torch.set_num_threads(1)
    # What else the machine does must not count: runs that are compared are timed by the same clock.
    calibration.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    if available != "all":
        planning.available = lambda device: int(available)
    sys.exit(main(["plan", *arguments]))
