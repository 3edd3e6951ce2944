"""Replays recorded runs of SPHERE on AlphaEdit (``SPHERE``)."""

from __future__ import annotations

import torch

from lit_edit.delta import Delta
from lit_edit.guards import SPHERE
from lit_edit.models.decoder import is_transposed
from lit_edit.verify import alphaedit, family, sequence, walk
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance


def guard(recording: Recording) -> SPHERE:
    """The guard of the recording; the side follows from how the model stores its weights, as in the released code."""
    said = recording.options("SPHERE")
    transposed = is_transposed(recording.anatomy.down(0))
    return SPHERE(eta=said["beta_hse"], alpha=said["alpha"], side="output" if transposed else "input")


def method(recording: Recording) -> Method | None:
    """The recorded sequence, AlphaEdit under the guard; ``None`` where there is none."""
    return alphaedit.rounded(recording, "SPHERE", guards=lambda: [guard(recording)])


@torch.no_grad()
def run(recording: Recording) -> list[Row]:
    """Rows of SPHERE: deltas before and after, their norms, how many directions were soft, and the weights they lead to."""
    tally, found = Tally(recording, "SPHERE"), method(recording)
    if found is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    file, sphere = found.file, guard(recording)
    editor, exact_moments = found.editor()
    tight = tolerance(recording, "SPHERE", "delta", CLOSED_FORM)
    projected = tolerance(recording, "SPHERE", "projection", CLOSED_FORM)
    if not exact_moments:
        tight = Tolerance(THROUGH_MODEL, "second moments collected anew")
    exact = alphaedit.exact(recording, "SPHERE")
    assert exact is not None
    loose = alphaedit.at_least(tight, alphaedit.projector_rounding(exact, found))
    stored = alphaedit.projectors(recording, found.layers, recording.options("SPHERE")["nullspace_threshold"])
    ranks = recording.meta.get("info", {}).get("SPHERE", {}).get("r", {})
    weights = {layer: recording.original[layer] for layer in found.layers}
    for batch, layer, delta, after_batch in sequence.solved(found, editor):
        at, weight = f"batch{batch}/layer{layer}", weights[layer]
        solved = tight if layer in stored else loose
        label = "[recorded K, R, C, P]" if layer in stored else "[recorded K, R, C; float32 projector]"
        tally.tensor(file, f"{at}/delta", f"delta {label}", delta.dense(), solved)
        tally.tensor(file, f"{at}/delta_fro", f"delta_fro {label}", delta.norm(), solved)
        recorded = file.get(f"{at}/delta")
        if recorded is not None:  # the guard alone
            after = sphere(layer, Delta.from_dense(recorded.double()), weight)
            tally.tensor(file, f"{at}/delta_projected", "delta projected [recorded delta]", after.dense(), projected)
            tally.tensor(file, f"{at}/delta_projected_fro", "norm projected [recorded delta]", after.norm(), projected)
        after = sphere(layer, delta, weight)
        if f"{at}/r" in ranks:
            soft = max(space.shape[1] for space in (sphere.soft(layer).left, sphere.soft(layer).right))
            tally.scalar("soft directions", soft, ranks[f"{at}/r"], Tolerance(0.0, "exact"), at)
        tally.tensor(file, f"{at}/delta_projected", f"delta projected {label}", after.dense(), solved)
        tally.tensor(file, f"{at}/delta_projected_fro", f"norm projected {label}", after.norm(), solved)
        weights[layer] = after_batch
        tally.tensor(file, f"{at}/W_after", f"W_after {label}", weights[layer], solved)
        tally.tensor(file, f"{at}/W_after_fro", f"W_after_fro {label}", weights[layer].double().norm(), solved)
    family.residuals(found, tally)
    walk.read(found, tally)
    walk.replay(found, tally)
    return tally.rows()


CHECK = Check("SPHERE", ("SPHERE.safetensors",), run)
