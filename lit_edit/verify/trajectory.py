"""The course of one target optimisation, compared with what was recorded of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lit_edit.verify.recording import TensorFile
from lit_edit.verify.table import Tally, Tolerance

_LOSSES = ("total", "nll", "kl", "decay", "probability")


def trajectory(
    tally: Tally, file: TensorFile, at: str, mode: str, deltas: Tensor, losses: Tensor, allowed: Callable[[str], Tolerance]
) -> None:
    """Optimised changes step by step (a step that is zero on both sides agrees), and the terms of the loss.

    Args:
        tally: where comparisons go.
        file: the recording.
        at: how it names the optimisation.
        mode: for the table.
        deltas: the changes ``[steps, hidden]``.
        losses: total, negative log-likelihood, KL, decay and probability of every step, ``[steps, 5]``.
        allowed: the tolerance, by the key of the difference that ``meta.json`` gives.
    """
    recorded = file.get(f"{at}/delta_traj")
    if recorded is not None:
        file.compared.add(f"{at}/delta_traj")
        if recorded.shape != deltas.shape:
            tally.add(f"delta_traj, steps between {mode}", float("inf"), allowed(""), f"{at}/delta_traj")
        else:
            last = len(deltas) - 1
            for index, (ours, theirs) in enumerate(zip(deltas, recorded, strict=True)):
                which, key = ("steps between", "")
                if index <= 1:
                    which, key = "steps 0 and 1", "delta_traj_step1"
                elif index == last:
                    which, key = "last step", "delta_traj_last_step"
                error = float((ours.double() - theirs.double()).norm()) / (float(theirs.double().norm()) or 1.0)
                tally.add(f"delta_traj, {which} {mode}", error, allowed(key), f"{at}/delta_traj[{index}]")
    recorded = file.get(f"{at}/loss_traj")
    if recorded is None:
        return
    file.compared.add(f"{at}/loss_traj")
    if recorded.shape != losses.shape:
        tally.add(f"loss_traj, total {mode}", float("inf"), allowed(""), f"{at}/loss_traj")
        return
    # Float32 log-probabilities leave an absolute error in each term, also in one that is almost nothing.
    floor = 1e-3 * float(recorded[:, 0].double().norm())
    for column, term in enumerate(_LOSSES):
        ours, theirs = losses[:, column].double(), recorded[:, column].double()
        error = float((ours - theirs).norm()) / max(float(theirs.norm()), floor if column else 0.0)
        tally.add(f"loss_traj, {term} {mode}", error, allowed(""), f"{at}/loss_traj")
