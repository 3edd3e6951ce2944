"""Replays recorded runs of SPHERE on AlphaEdit (``SPHERE``).

Legend: I = d_in, H = remembered keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_edit.anatomy import is_transposed
from lit_edit.delta import Delta
from lit_edit.guards import SPHERE
from lit_edit.moments import SecondMoment
from lit_edit.solver import WithHistory, solve
from lit_edit.verify import moments, rect
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance


def guard(recording: Recording) -> SPHERE:
    """The guard of the recording; the side follows from how the model stores its weights, as in the released code."""
    said = recording.options("SPHERE")
    transposed = is_transposed(recording.anatomy.down(0))
    return SPHERE(eta=said["beta_hse"], alpha=said["alpha"], side="output" if transposed else "input")


def projector(recording: Recording, layer: int, moment: SecondMoment, threshold: float) -> Tensor:
    """AlphaEdit's null-space projector as the reference has it, ``[d_in, d_in]`` float32.

    It comes from a float32 decomposition of ``C``, which is off by 1e-5 to 1e-4 where eigenvalues lie close to the threshold:
    more than anything else in the method. So it is taken as recorded where it is, else made in the same precision.
    """
    recorded = recording.tensors("AlphaEdit")
    found = None if recorded is None else recorded.get(f"P/layer{layer}")
    if found is not None:
        return found
    vectors, values, _ = torch.linalg.svd(moment.mean.float(), full_matrices=False)
    free = vectors[:, values < threshold]
    return free @ free.T


def deltas(recording: Recording) -> Iterator[tuple[int, int, Delta]]:
    r"""``(batch, layer, delta)`` of AlphaEdit before the guard, from recorded keys, residuals and second moments.

    .. math:: (P (K K^T + H H^T) + L_2 I)\, X = P K R^T, \qquad \Delta = X^T

    which is :func:`lit_edit.solver.solve` with keys ``P K`` and :math:`A = L_2 I + P H H^T P`.
    """
    file = recording.tensors("SPHERE")
    if file is None:
        return
    said = recording.options("SPHERE")
    ridge, threshold = float(said["L2"]), float(said["nullspace_threshold"])
    found, _ = moments.recorded(recording, rect.layers(recording, "SPHERE"))
    free = {layer: projector(recording, layer, moment, threshold).double() for layer, moment in found.items()}
    history = {layer: matrix.new_zeros(len(matrix), 0) for layer, matrix in free.items()}  # [I, H]
    for batch, layer, keys, residuals in rect.inputs(recording, file, "SPHERE"):
        inside = free[layer] @ keys.double().T
        inverse = WithHistory(lambda columns: columns.double() / ridge, history[layer])
        yield batch, layer, solve(inverse, inside.T, residuals, 1.0)
        history[layer] = torch.cat([history[layer], inside], 1)


@torch.no_grad()
def run(recording: Recording) -> list[Row]:
    """Rows of SPHERE: deltas before and after, their norms, how many directions were soft, and the weights they lead to."""
    tally, file = Tally(recording, "SPHERE"), recording.tensors("SPHERE")
    if file is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    sphere, layers = guard(recording), rect.layers(recording, "SPHERE")
    solved = tolerance(recording, "SPHERE", "delta", CLOSED_FORM)
    projected = tolerance(recording, "SPHERE", "projection", CLOSED_FORM)
    if not moments.recorded(recording, layers)[1]:
        solved = Tolerance(THROUGH_MODEL, "second moments collected anew")
    ranks = recording.meta.get("info", {}).get("SPHERE", {}).get("r", {})
    weights = {layer: recording.original[layer].clone() for layer in layers}
    for batch, layer, delta in deltas(recording):
        at, weight = f"batch{batch}/layer{layer}", weights[layer]
        tally.tensor(file, f"{at}/delta", "delta [recorded K, R, C]", delta.dense(), solved)
        tally.tensor(file, f"{at}/delta_fro", "delta_fro [recorded K, R, C]", delta.norm(), solved)
        recorded = file.get(f"{at}/delta")
        if recorded is not None:  # the guard alone
            after = sphere(layer, Delta.from_dense(recorded.double()), weight)
            tally.tensor(file, f"{at}/delta_projected", "delta projected [recorded delta]", after.dense(), projected)
            tally.tensor(file, f"{at}/delta_projected_fro", "norm projected [recorded delta]", after.norm(), projected)
        after = sphere(layer, delta, weight)
        if f"{at}/r" in ranks:
            found = max(space.shape[1] for space in (sphere.soft(layer).left, sphere.soft(layer).right))
            tally.scalar("soft directions", found, ranks[f"{at}/r"], Tolerance(0.0, "exact"), at)
        tally.tensor(file, f"{at}/delta_projected", "delta projected [recorded K, R, C]", after.dense(), solved)
        tally.tensor(file, f"{at}/delta_projected_fro", "norm projected [recorded K, R, C]", after.norm(), solved)
        weights[layer] = weight + after.dense().float()
        tally.tensor(file, f"{at}/W_after", "W_after [recorded K, R, C]", weights[layer], solved)
        tally.tensor(file, f"{at}/W_after_fro", "W_after_fro [recorded K, R, C]", weights[layer].double().norm(), solved)
    return tally.rows()


CHECK = Check("SPHERE", ("SPHERE.safetensors",), run)
