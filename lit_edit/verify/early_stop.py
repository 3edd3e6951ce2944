"""Replays recorded target optimisations that end early because their loss is small enough."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.editors import MEMIT
from lit_edit.targets import Step, optimise
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.verify.trajectory import trajectory

_NAME = "Z_early_stop"


def run(recording: Recording) -> list[Row]:
    """Rows of the targets of all recorded requests on the original weights: values, trajectories, passes."""
    tally = Tally(recording, _NAME)
    found = Method.of(recording, _NAME, lambda said: MEMIT(lam=said["mom2_update_weight"]))
    if found is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    if found.obstacle is not None:
        tally.note("all", found.obstacle)
        return tally.rows()
    steps: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def see(step: Step) -> None:
        columns = torch.stack([step.total, step.nll, step.kl, step.decay, step.probability], 1)
        for request, delta, losses in zip(step.requests.tolist(), step.delta_ND, columns, strict=True):
            steps.setdefault(request, []).append((delta, losses))

    recorded = sum(1 for _ in found.file.names(r"req\d+/z"))
    requests = [row for batch in recording.batches for row in batch][:recorded]
    recording.restore()
    targets = optimise(recording.anatomy, requests, found.layers[-1], found.options, recording.encoder.pad, see)
    allowed = tolerance(recording, _NAME, "z", THROUGH_MODEL)
    passes = recording.want(f"info/{_NAME}/steps", list)
    for request, seen in sorted(steps.items()):
        deltas, losses = (torch.stack(part) for part in zip(*seen, strict=True))
        trajectory(tally, found.file, f"req{request}", "[original weights]", deltas, losses, lambda _: allowed)
        tally.tensor(found.file, f"req{request}/z", "z [original weights]", targets.values_ND[request], allowed)
        if request < len(passes):
            error = float(abs(len(seen) - passes[request]))
            tally.add("forward passes", error, Tolerance(0.0, "exact"), f"req{request}")
    return tally.rows()


CHECK = Check(_NAME, (f"{_NAME}.safetensors",), run)
