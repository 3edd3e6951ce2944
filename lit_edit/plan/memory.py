"""Memory of a run by phase: every part from shapes, the passes by rehearsal.

Legend: O = d_out, I = d_in, n = requests of a batch.
"""

from __future__ import annotations

from lit_edit.algebra.leading import EXACT_SIDE
from lit_edit.editors import EvoEdit
from lit_edit.plan.preparing import eigen, preparing, total
from lit_edit.plan.rehearsal import gradients
from lit_edit.plan.rehearsed import forwarded, target_part
from lit_edit.plan.result import Part, Phase
from lit_edit.plan.scene import Scene
from lit_edit.plan.standing import checkpoint_bytes, kept_parts, model_parts, weights
from lit_edit.plan.state import closed_directions, needs_targets

CONTEXT = 600 * 2**20
"""What a CUDA context with its libraries and their workspaces takes."""


def phases(scene: Scene, runtime: int) -> tuple[Phase, ...]:
    """All phases of a run with everything that each holds at its largest moment.

    Args:
        scene: the run.
        runtime: bytes of the interpreter and its libraries, or of the device's context.
    """
    base = Part("interpreter and libraries" if scene.device == "cpu" else "device context", runtime)
    model = model_parts(scene)
    kept = kept_parts(scene)
    found = [Phase("prepare", (base, *model, *preparing(scene)))]
    if needs_targets(scene.editor):
        found.append(Phase("targets", (base, *model, *kept, *_targets(scene))))
    else:
        found.append(Phase("gradients", (base, *model, *kept, *_gradients(scene))))
    found.append(Phase("walk", (base, *model, *kept, *_walk(scene))))
    found.append(Phase("apply", (base, *model, *kept, *_apply(scene))))
    found.append(Phase("evaluate", (base, *model, *kept, *_evaluate(scene))))
    return tuple(Phase(phase.name, tuple(part for part in phase.parts if part.bytes)) for phase in found)


def _targets(scene: Scene) -> list[Part]:
    part, held = target_part(scene)
    said = f"{part.requests} requests, {part.rows} rows of {part.suffix} tokens"
    # The table of logits, its logarithm and the gradient of either; what is left is activations, cached keys and values.
    logits = min(3 * held.logits, held.peak)
    return [
        Part("activations of the targets", held.peak - logits, said),
        Part("logits of the targets", logits, f"{part.spots} positions of {scene.network.anatomy.vocabulary:,}"),
    ]


def _gradients(scene: Scene) -> list[Part]:
    rows = max((grid for batch in scene.stream.read for grid in batch.rows), key=lambda grid: grid.tokens)
    held = gradients(scene.network, rows.lines, rows.columns, rows.spots, scene.layers)
    found = [Part("activations of the gradients", held.peak, f"{rows.lines} rows of {rows.columns} tokens")]
    if not scene.editor.runs_sharded:  # fine-tuning: trained copies, where they start, Adam's two moments, gradients
        found.append(Part("descent", weights(scene, 4 * 6), "weights, start, two moments, gradients, the cast that is shown"))
    return found


def _walk(scene: Scene) -> list[Part]:
    d_out, d_in = scene.shape
    n, grids = scene.largest.requests, [*scene.largest.bare, *scene.largest.contexts]
    states = sum(grid.tokens for grid in grids) * d_out * scene.network.anatomy.dtype.itemsize
    largest = max((forwarded(scene, grid, scene.layers[-1]) for grid in grids), default=0)
    closed = closed_directions(scene.editor, d_in, sum(scene.stream.sizes), scene.protected)
    # What is protected, in the metric of the solve, and its Gram matrix with the sum that makes it symmetric; or behind the
    # solve the change in float64 and in float32. The weight so far and a few copies of the keys are there throughout.
    inside = 8 * closed * d_in if isinstance(scene.editor, EvoEdit) else 8 * (closed * d_in + 3 * closed**2)
    solving = 4 * d_out * d_in + max((8 + 4) * d_out * d_in, inside) + 8 * 4 * n * d_in
    return [
        Part("changes", weights(scene, 4), "of the batch, as the model shows them"),
        Part("hidden states of the keys", states),
        Part("passes and solve", max(largest, solving), "one layer"),
        Part("history before the batch", scene.state.replaced, "until the batch is written"),
    ]


def _apply(scene: Scene) -> list[Part]:
    d_out, d_in = scene.shape
    encoding = 4 * (4 + 4 + 4 + 1) * d_out * d_in // 4 if scene.settings.factors else 0
    saving = 2 * checkpoint_bytes(scene) if scene.device == "cpu" else 0
    look = _look(scene)
    return max(
        (
            [
                Part("changes", weights(scene, 4), "of the batch"),
                Part("masters before", weights(scene, 4), "until the batch is in the journal"),
                Part("history before the batch", scene.state.replaced),
                Part("writing the journal", encoding, "one layer"),
            ],
            [Part("checkpoint", saving, "a copy, and the file before it is written")],
            [Part("look at the spectra", look, "one layer, float64")],
        ),
        key=total,
    )


def _look(scene: Scene) -> int:
    """What the drift callback takes for one layer: a whole decomposition, or a few leading triples of a large matrix."""
    if not scene.settings.drift_every:
        return 0
    least, most = min(scene.shape), max(scene.shape)
    if least > EXACT_SIDE and not scene.settings.drift_full_every:
        return 8 * least * most + 3 * 8 * least**2
    return (4 + 8 + 8 + 4) * least * most + eigen(least)


def _evaluate(scene: Scene) -> list[Part]:
    grids = [*scene.scoring, *scene.probes]
    if not grids:
        return []
    grid = max(grids, key=lambda one: (one.tokens, one.spots))
    return [Part("evaluation", forwarded(scene, grid, None), f"{grid.lines} rows of {grid.columns} tokens at once")]
