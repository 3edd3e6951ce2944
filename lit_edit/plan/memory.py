"""Memory of a run by phase: every part from shapes, the passes by rehearsal.

Legend: O = d_out, I = d_in, L = edited layers, M = min(d_out, d_in), H = remembered keys, n = requests of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from lit_edit.corpus import SampledCorpus
from lit_edit.leading import EXACT_SIDE
from lit_edit.plan.rehearsal import Held, TargetShape, forward, gradients, target_step
from lit_edit.plan.result import Part, Phase
from lit_edit.plan.scene import Scene
from lit_edit.plan.state import closed_directions, keeps_moment, needs_targets
from lit_edit.plan.work import Grid
from lit_edit.preparation import _AT_ONCE

CONTEXT = 600 * 2**20
"""What a CUDA context with its libraries and their workspaces takes."""


def phases(scene: Scene, runtime: int) -> tuple[Phase, ...]:
    """All phases of a run with everything that each holds at its largest moment.

    Args:
        scene: the run.
        runtime: bytes of the interpreter and its libraries, or of the device's context.
    """
    base = Part("interpreter and libraries" if scene.device == "cpu" else "device context", runtime)
    model = _model(scene)
    kept = _kept(scene)
    found = [Phase("prepare", (base, *model, *_preparing(scene)))]
    if needs_targets(scene.editor):
        found.append(Phase("targets", (base, *model, *kept, *_targets(scene))))
    else:
        found.append(Phase("gradients", (base, *model, *kept, *_gradients(scene))))
    found.append(Phase("walk", (base, *model, *kept, *_walk(scene))))
    found.append(Phase("apply", (base, *model, *kept, *_apply(scene))))
    found.append(Phase("evaluate", (base, *model, *kept, *_evaluate(scene))))
    return tuple(Phase(phase.name, tuple(part for part in phase.parts if part.bytes)) for phase in found)


# ---------------------------------------------------------------------------------------------------- what is always there


def _model(scene: Scene) -> list[Part]:
    """The model, its masters and its originals; of a sharded model, this rank's part and one block that is gathered."""
    network, ranks = scene.network, scene.settings.ranks
    whole, dtype = network.model_bytes, str(network.anatomy.dtype).removeprefix("torch.")
    size, note = whole, f"{network.parameters:,} numbers, {dtype}"
    if scene.settings.strategy == "sharded" and ranks > 1:
        blocks = sum(network.block_bytes(at) for at in range(len(network.anatomy.blocks)))
        size = whole - blocks + -(-blocks // ranks) + network.block_bytes()
        note += f"; blocks cut over {ranks} ranks, one gathered"
    return [
        Part("model", size, note),
        Part("float32 masters", _weights(scene, 4), _of_layers(scene)),
        Part("originals", _weights(scene, 4), _of_layers(scene)),
    ]


def _weights(scene: Scene, size: int) -> int:
    """Bytes of all edited weights with ``size`` bytes a number."""
    d_out, d_in = scene.shape
    return size * d_out * d_in * len(scene.layers)


def _of_layers(scene: Scene) -> str:
    d_out, d_in = scene.shape
    return f"{len(scene.layers)} x {d_out} x {d_in}"


def spectra(scene: Scene) -> int:
    """Bytes of the spectra of all layers, ``4 M (O + I) + 8 M`` each; 0 where nobody wants them."""
    d_out, d_in = scene.shape
    least = min(d_out, d_in)
    return len(scene.layers) * (4 * least * (d_out + d_in) + 8 * least) if scene.wants_spectra else 0


def key_memory(scene: Scene) -> int:
    """Bytes of what the drift callback keeps of earlier keys and of the last change."""
    if not scene.settings.drift_every:
        return 0
    d_in = scene.shape[1]
    keys = min(sum(scene.stream.sizes), scene.settings.remembered_keys) if needs_targets(scene.editor) else 0
    return len(scene.layers) * (2 * d_in * keys + _last_change(scene))


def checkpoint_bytes(scene: Scene) -> int:
    """Bytes of a checkpoint at the end of the stream: masters, state, what the drift callback remembers, and the header."""
    d_out, d_in = scene.shape
    masters = 4 * d_out * d_in * len(scene.layers)
    return masters + scene.state.buffers + key_memory(scene) + 20_000


def _last_change(scene: Scene) -> int:
    d_out, d_in = scene.shape
    sizes = [batch for batch in scene.stream.read if batch.requests]
    rank = scene.rank_of(sizes[-1]) if sizes else 0
    if rank is None:
        return 4 * d_out * d_in if d_out * d_in <= 2**24 else 0
    return 4 * rank * (d_out + d_in)


def _thin(scene: Scene) -> int:
    """Factors of a batch's changes in float64, and its keys."""
    d_out, d_in = scene.shape
    n, rank = scene.largest.requests, scene.rank
    factors = 8 * d_out * d_in if rank is None else 8 * rank * (d_out + d_in)
    return len(scene.layers) * (factors + 4 * n * d_in)


def _kept(scene: Scene) -> list[Part]:
    """What stays from the first batch on."""
    d_in = scene.shape[1]
    layers, state = len(scene.layers), scene.state
    moments = layers * 4 * d_in**2 if keeps_moment(scene.editor) else 0
    return [
        Part("second moments", moments, f"{layers} x {d_in} x {d_in}, float32"),
        Part("inverses", state.inverse, "made once from the second moments"),
        Part("history", state.largest, f"state of {type(scene.editor).__name__}, at its largest"),
        Part("history, applied", state.working, "inverse times earlier keys, and their factor"),
        Part("spectra", spectra(scene), "of the original weights"),
        Part("guards", _guards(scene), "what they keep besides"),
        Part("key memory", key_memory(scene), "of the drift callback"),
        Part("gradients", _weights(scene, 4), "the last batch's change, which the optimiser holds"),
        Part("last batch", _thin(scene), "its factors and keys"),
    ]


def _guards(scene: Scene) -> int:
    d_out, d_in = scene.shape
    found = 0
    for guard in scene.guards:
        if getattr(guard, "of", "original") == "current":
            found += len(scene.layers) * (4 * d_out * d_in + 4 * min(d_out, d_in) * (d_out + d_in))
    return found


# ---------------------------------------------------------------------------------------------------- phases


def _preparing(scene: Scene) -> list[Part]:
    """The largest of: the pass over the corpus, what comes of it, the spectra, and what the editor makes."""
    d_out, d_in = scene.shape
    layers, square, least = len(scene.layers), d_in**2, min(scene.shape)
    moments = layers * 4 * square if scene.editor.needs_moments else 0
    found: list[list[Part]] = []
    if scene.moment_tokens and scene.corpus is not None:
        sums = Part("sums of second moments", layers * 8 * square, "float64")
        found.append([sums, Part("moments pass", moments_pass(scene), f"{_pass_tokens(scene)} tokens at once")])
        found.append([sums, Part("second moments", moments, "float32"), Part("dividing", 20 * square, "one layer")])
        found.append([Part("second moments", 2 * moments, "computed, and as the cache gives them"), Part("cache", 12 * square)])
    if isinstance(scene.corpus, SampledCorpus) and scene.moment_tokens:
        found.append([Part("sampling", _sampling(scene), f"{scene.corpus.rows_at_once} rows of {scene.corpus.length} tokens")])
    if spectra(scene):
        one = spectra(scene) // layers
        working = 8 * d_out * d_in + _eigen(least) + 8 * least * max(d_out, d_in) + one
        found.append(
            [
                Part("second moments", moments, "float32"),
                Part("spectra", 2 * spectra(scene), "computed, and as the cache gives them"),
                Part("decomposition", working, "one layer, float64"),
            ]
        )
    ready = [Part("second moments", moments, "float32"), Part("spectra", spectra(scene))]
    last = scene.state.inverse * (layers - 1) // layers
    found.append([*ready, Part("inverses", last, "of the other layers"), Part("factorisation", _making(scene), "one layer")])
    return max(found, key=_sum)


def _making(scene: Scene) -> int:
    return scene.state.inverse // len(scene.layers) + scene.state.preparing


def _eigen(side: int) -> int:
    """A matrix, its eigenvectors and the workspace of LAPACK's divide and conquer, float64."""
    return 8 * 5 * side**2


def _pass_tokens(scene: Scene) -> int:
    return min(_AT_ONCE, scene.moment_tokens)


def moments_pass(scene: Scene) -> int:
    """Bytes of a pass over the corpus: the model up to the last edited block, and the keys of one layer with their product."""
    d_in, tokens = scene.shape[1], _pass_tokens(scene)
    length = scene.row_tokens
    run = _forward(scene, Grid(max(1, tokens // length), length), scene.layers[-1])
    size = scene.network.anatomy.dtype.itemsize
    keys = tokens * d_in * (size + (4 if size < 4 else 0)) + 4 * tokens * d_in
    return run + keys + 4 * max(512, -(-d_in // 8)) * d_in


def _sampling(scene: Scene) -> int:
    network, corpus = scene.network, scene.corpus
    heads, width = network.heads
    tokens = corpus.rows_at_once * min(corpus.length, network.anatomy.positions)
    cache: int = 2 * tokens * heads * width * len(network.anatomy.blocks) * network.anatomy.dtype.itemsize
    # The cache is written anew, longer by one, block by block; the likelihoods are copied three times.
    likelihoods: int = 12 * corpus.rows_at_once * network.anatomy.vocabulary
    return cache + cache // len(network.anatomy.blocks) + likelihoods


def target_part(scene: Scene) -> tuple[TargetShape, Held]:
    """The largest part of a target optimisation, halved until it keeps no more than ``--model.targets.memory``."""
    parts = [part for batch in scene.stream.read for part in batch.parts]
    part = max(parts, key=lambda one: one.rows * (one.suffix + one.prefix / 8))
    if getattr(scene.editor, "in_order", False):
        while part.requests > 1:
            part = part.halved()
    elif scene.workers > 1:
        # Fewer parts than ranks are halved.
        while part.requests > max(1, -(-scene.largest.requests // scene.workers)):
            part = part.halved()
    held = rehearsed(scene, part)
    budget = scene.targets.memory
    while budget is not None and held.kept > budget * 2**30 and part.requests > 1:
        part = part.halved()
        held = rehearsed(scene, part)
    return part, held


@lru_cache(maxsize=256)
def _rehearsed(network: object, part: TargetShape, layer: int) -> Held:
    return target_step(network, part, layer)  # type: ignore[arg-type]


def rehearsed(scene: Scene, part: TargetShape) -> Held:
    """See :func:`lit_edit.plan.rehearsal.target_step`."""
    return _rehearsed(scene.network, part, scene.layers[-1])


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
        found.append(Part("descent", _weights(scene, 4 * 6), "weights, start, two moments, gradients, the cast that is shown"))
    return found


def _walk(scene: Scene) -> list[Part]:
    d_out, d_in = scene.shape
    n, grids = scene.largest.requests, [*scene.largest.bare, *scene.largest.contexts]
    states = sum(grid.tokens for grid in grids) * d_out * scene.network.anatomy.dtype.itemsize
    largest = max((_forward(scene, grid, scene.layers[-1]) for grid in grids), default=0)
    closed = closed_directions(scene.editor, d_in, sum(scene.stream.sizes))
    # The weight so far, the change in float64 and in float32, and what one layer's solve multiplies.
    solving = (4 + 8 + 4) * d_out * d_in + 8 * 4 * n * d_in + 8 * (2 * closed * d_in + closed**2 * 2)
    return [
        Part("changes", _weights(scene, 4), "of the batch, as the model shows them"),
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
                Part("changes", _weights(scene, 4), "of the batch"),
                Part("masters before", _weights(scene, 4), "until the batch is in the journal"),
                Part("history before the batch", scene.state.replaced),
                Part("writing the journal", encoding, "one layer"),
            ],
            [Part("checkpoint", saving, "a copy, and the file before it is written")],
            [Part("look at the spectra", look, "one layer, float64")],
        ),
        key=_sum,
    )


def _look(scene: Scene) -> int:
    """What the drift callback takes for one layer: a whole decomposition, or a few leading triples of a large matrix."""
    if not scene.settings.drift_every:
        return 0
    least, most = min(scene.shape), max(scene.shape)
    if least > EXACT_SIDE and not scene.settings.drift_full_every:
        return 8 * least * most + 3 * 8 * least**2
    return (4 + 8 + 8 + 4) * least * most + _eigen(least)


def _evaluate(scene: Scene) -> list[Part]:
    grids = [*scene.scoring, *scene.probes]
    if not grids:
        return []
    grid = max(grids, key=lambda one: (one.tokens, one.spots))
    return [Part("evaluation", _forward(scene, grid, None), f"{grid.lines} rows of {grid.columns} tokens at once")]


@lru_cache(maxsize=256)
def _forwarded(network: object, grid: Grid, last: int | None) -> int:
    return forward(network, grid.lines, grid.columns, grid.spots, last, grid.packed)  # type: ignore[arg-type]


def _forward(scene: Scene, grid: Grid, last: int | None) -> int:
    return _forwarded(scene.network, grid, last)


def _sum(parts: Iterable[Part]) -> int:
    return sum(part.bytes for part in parts)
