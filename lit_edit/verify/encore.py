"""Replays recorded ENCORE runs."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.editors import ENCORE
from lit_edit.targets import PredictedFor, Step, optimise
from lit_edit.verify import family
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import Row, Tally, Tolerance


class ReleasedStop(PredictedFor):
    """The released rule: a forward pass counts if *exactly* as many answer tokens are right as there are context rows.

    It agrees with :class:`lit_edit.targets.PredictedFor` for one-token answers; for longer ones it may never stop.

    Args:
        patience: number of such passes.
        contexts: number of context rows.
    """

    def __init__(self, patience: int, contexts: int) -> None:
        super().__init__(patience)
        self.contexts = contexts

    def __call__(self, seen: Step) -> Tensor:
        """See :class:`lit_edit.targets.StopRule`."""
        return self._count(seen, seen.context_hits == self.contexts)


def method(recording: Recording) -> Method | None:
    """The recorded sequence, ``None`` where there is none."""
    if recording.tensors("ENCORE") is None:
        return None
    patience, contexts = abs(recording.want("hyper_parameters/ENCORE/prob_cutoff", int)), len(recording.contexts)
    return Method.of(
        recording,
        "ENCORE",
        lambda said: ENCORE(said["mom2_update_weight"], said["update_norm_lambda"], history=said.get("sequential", True)),
        stop=lambda: ReleasedStop(patience, contexts),
    )


def run(recording: Recording) -> list[Row]:
    """Rows of ENCORE: residuals and deltas from recorded inputs, then the model's part with the released stopping rule."""
    return family.run(recording, "ENCORE", method(recording), _hits)


def _hits(method: Method, tally: Tally) -> None:
    """Right answer tokens in the context rows, pass after pass, of the first batch (the others start from edited weights)."""
    said = method.recording.meta.get("info", {}).get("ENCORE", {}).get("num_correct_per_step", {}).get("0")
    if said is None or method.obstacle is not None or method.stop is None:
        return
    rec = method.recording
    counted: dict[int, list[float]] = {}

    def see(step: Step) -> None:
        for request, hits in zip(step.requests.tolist(), step.context_hits.tolist(), strict=True):
            counted.setdefault(request, []).append(hits)

    rec.restore()
    optimise(rec.anatomy, rec.batches[0], method.layers[-1], method.options, rec.encoder.pad, see, stop=method.stop())
    for request, recorded in enumerate(said):
        ours = torch.tensor(counted[request])
        theirs = torch.tensor(recorded, dtype=ours.dtype)
        error = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        tally.add("right tokens by pass [batch 0]", error, Tolerance(0.0, "exact"), f"request {request}")


CHECK = Check("ENCORE", ("ENCORE.safetensors",), run)
