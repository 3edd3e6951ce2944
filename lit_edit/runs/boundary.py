"""Where a run stands between two batches: Lightning's counters, and the state of the random number generators."""

from __future__ import annotations

import random
from typing import Any

import torch


def settle_loops(fit: dict[str, Any], batches: int, owed: bool, finished: bool, logged: int) -> None:
    """Make the counters of a saved fit those of a run that stands between two batches, wherever it was saved.

    A checkpoint that is written on the way out of an error finds Lightning's counters in the middle of a batch. Lightning
    repairs only some of them when it resumes: the total of batches and the step of the loggers stay one too high, so that
    every later validation and every later row would come one batch off.

    Args:
        fit: ``checkpoint["loops"]["fit_loop"]``; changed in place.
        batches: batches that lie behind.
        owed: whether a validation that was due after the last of them did not come to its end.
        finished: whether the stream ends here.
        logged: step of the next row that the loggers get.
    """
    for counters in _counters(fit["epoch_loop.batch_progress"]):
        counters.update(ready=batches, started=batches, processed=batches, completed=batches)
    fit["epoch_loop.batch_progress"]["is_last_batch"] = finished
    done = int(finished and not owed)
    for counters in _counters(fit["epoch_progress"]):
        counters.update(ready=1, started=1, processed=done, completed=done)
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = logged
    # A validation that was broken off begins anew: Lightning takes this as the middle of one, with nothing done yet.
    scored = fit["epoch_loop.val_loop.batch_progress"]
    scored["current"].update(ready=0, started=0, processed=0, completed=0)
    scored["total"].update(ready=int(owed), started=int(owed), processed=0, completed=0)
    scored["is_last_batch"] = False


def _counters(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    return progress["total"], progress["current"]


def random_state() -> dict[str, Any]:
    """State of the generators that editors, guards and targets of a user's own may draw from: torch's and Python's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """Put a :func:`random_state` back; generators of devices that this machine has not are left out."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.cpu(), device)
    random.setstate(state["python"])
