r"""Floating point operations of a run by phase: counted from shapes, a multiplication and an addition each.

Legend: t = tokens, O = d_out, I = d_in, L = edited layers, n = requests of a batch, h = remembered keys, M = min(O, I).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lit_edit.algebra.leading import EXACT_SIDE
from lit_edit.corpus import SampledCorpus
from lit_edit.data.loader import spread
from lit_edit.editors import FT, AlphaEdit, BetaEdit, EvoEdit, LyapLock
from lit_edit.editors.remembering import RememberingEditor
from lit_edit.plan.disk import looks
from lit_edit.plan.rehearsal import TargetShape
from lit_edit.plan.result import Cached, Work
from lit_edit.plan.scene import Scene
from lit_edit.plan.state import closed_directions, needs_targets
from lit_edit.plan.work import BatchWork, Grid

BACKWARD = 1.0
"""Operations of a backward pass to the activations alone, as a multiple of the forward pass's: no weight has a gradient."""


def operations(scene: Scene, cached: Sequence[Cached]) -> tuple[Work, ...]:
    """Operations of the whole stream by phase, on the busiest rank.

    Args:
        scene: the run.
        cached: what need not be computed.
    """
    there = {found.name: sum((found.layers or {}).values()) for found in cached}
    layers, steps = len(scene.layers), scene.targets.steps
    batches = scene.stream.read
    scale = scene.stream.scale
    found = [_contexts(scene)]
    if there.get("second moments", 0) < layers:
        found.append(_moments(scene, layers - there.get("second moments", 0)))
    if scene.wants_spectra:
        found.append(_spectra(scene, layers - there.get("spectra", 0)))
    found.append(_factors(scene))
    if needs_targets(scene.editor):
        found.append(Work("targets", model=scale * sum(targets(scene, batch, steps) for batch in batches) / scene.workers))
        found.append(Work("keys", model=scale * sum(keys(scene, batch) for batch in batches) / scene.workers))
    else:
        found.append(Work("gradients", model=scale * sum(_gradients(scene, batch) for batch in batches) / scene.workers))
    found += [_solves(scene), _journal(scene), _looking(scene), _evaluation(scene)]
    return tuple(work for work in found if work.operations)


# ---------------------------------------------------------------------------------------------------- before the stream


def _contexts(scene: Scene) -> Work:
    """Context templates, token by token without a cache."""
    if not scene.editor.needs_contexts or not scene.targets.contexts:
        return Work("contexts")
    lengths, count = scene.targets.context_lengths, scene.targets.contexts
    total = 0.0
    for index in range(count):
        for tokens in range(1, lengths[index * len(lengths) // count]):
            total += _whole(scene, tokens, tokens, tokens)
    return Work("contexts", model=total)


def _moments(scene: Scene, missing: int) -> Work:
    r"""Text that the model samples, one pass up to the last layer, and :math:`\sum x x^T` above the diagonal."""
    tokens, d_in = scene.moment_tokens, scene.shape[1]
    if not tokens:
        return Work("second moments")
    length = scene.row_tokens
    run = scene.network.block_operations(tokens * scene.padding, length, scene.layers[-1] + 1) / scene.workers
    panel = max(512, -(-d_in // 8))
    above = sum(min(panel, d_in - start) * (d_in - start) for start in range(0, d_in, panel))
    sketches = 2 * 2 * 32 * d_in
    single = missing * tokens * (2 * above + sketches) / scene.workers
    if isinstance(scene.corpus, SampledCorpus):
        rows = -(-tokens // length)
        rows = -(-rows // scene.corpus.rows_at_once) * scene.corpus.rows_at_once
        run += _whole(scene, rows * length, length / 2, rows * length)
    return Work("second moments", model=run, single=single)


def _whole(scene: Scene, tokens: float, context: float, positions: float) -> float:
    """A forward pass of the whole model with logits at some positions."""
    network = scene.network
    return network.block_operations(tokens, context, len(network.anatomy.blocks)) + network.head_operations(positions)


def decomposition(scene: Scene, vectors: bool = True) -> tuple[float, float]:
    """Products and factorisations, in float64, of all singular values of one weight; with their vectors."""
    least, most = min(scene.shape), max(scene.shape)
    return 2.0 * least**2 * most * (2 if vectors else 1), (9.0 if vectors else 4 / 3) * least**3


def _spectra(scene: Scene, missing: int) -> Work:
    products, factors = decomposition(scene)
    own = -(-missing // scene.settings.ranks)
    return Work("spectra", double=own * products, factors=own * factors)


def _factors(scene: Scene) -> Work:
    """What the editor makes of the second moments: a Cholesky factor and its inverse, ``I^3``, or eigenvectors, ``9 I^3``."""
    if not scene.state.inverse:
        return Work("factorisation")
    eigen = isinstance(scene.editor, AlphaEdit | BetaEdit | LyapLock)
    cube = float(scene.shape[1]) ** 3
    # The condition number takes ten steps with four vectors.
    double = 0.0 if eigen else 10 * 4 * 3 * 2 * float(scene.shape[1]) ** 2
    return Work("factorisation", double=len(scene.layers) * double, factors=len(scene.layers) * (9 if eigen else 1) * cube)


# ---------------------------------------------------------------------------------------------------- the stream


def step(scene: Scene, part: TargetShape) -> float:
    """A forward pass of the target optimisation: blocks above the layer, the last MLP and logits where they are read."""
    network, above = scene.network, len(scene.network.anatomy.blocks) - 1 - scene.layers[-1]
    tokens = part.rows * part.suffix
    run = network.block_operations(tokens, part.prefix + part.suffix, above)
    if above:
        run -= 2.0 * network.mlp * max(tokens - part.spots, 0)
    return run + network.head_operations(part.spots)


def targets(scene: Scene, batch: BatchWork, steps: int) -> float:
    """The whole target optimisation of a batch, if no request stops early."""
    network, layer = scene.network, scene.layers[-1]
    above = len(network.anatomy.blocks) - 1 - layer
    total = 0.0
    for part, posed, heads in zip(batch.parts, batch.posed, batch.heads, strict=True):
        one = step(scene, part)
        total += one * (steps + BACKWARD * (steps - 1))
        total += _pass(scene, posed, layer + 1)
        total += _pass(scene, heads, above)
    return total


def keys(scene: Scene, batch: BatchWork) -> float:
    """The incremental key pass of a batch, and the values of bare prompts, read at every layer.

    A pass over layer ``l`` starts from what it has kept, the output of the block before the previous edited one.
    """
    last = scene.layers[-1]
    run, values, at = 0, 0, 0  # blocks; the next one that has to run
    for layer in scene.layers:
        run += layer + 1 - at
        at = layer
        values += last + 1 - at
    total = run * sum(_pass(scene, grid, 1) for grid in (*batch.bare, *batch.contexts))
    return total + values * sum(_pass(scene, grid, 1) for grid in batch.bare)


def _pass(scene: Scene, grid: Grid, blocks: int) -> float:
    return scene.network.block_operations(grid.tokens, grid.columns, blocks)


def _gradients(scene: Scene, batch: BatchWork) -> float:
    """Forward and backward passes of editors that take gradients; fine-tuning also needs those of the weights."""
    total = 0.0
    above = len(scene.network.anatomy.blocks) - scene.layers[0]
    for grid in batch.rows:
        forward = _whole(scene, grid.tokens, grid.columns, grid.spots)
        back = _pass(scene, grid, above) + scene.network.head_operations(grid.spots)
        if isinstance(scene.editor, FT):
            back += 2.0 * grid.tokens * scene.shape[0] * scene.shape[1] * len(scene.layers)
            total += scene.editor.options.steps * (forward + back)
        else:
            total += forward + back
    return total


def _solves(scene: Scene) -> Work:
    r"""Keys through the inverse ``2 I^2 n``, earlier keys ``4 h I n`` and ``2 h^2 n``, the change ``2 O I n``, and folds."""
    d_out, d_in = scene.shape
    layers, editor = len(scene.layers), scene.editor
    remembers = isinstance(editor, RememberingEditor) and editor.history
    dense_metric = bool(scene.state.inverse) and not (isinstance(editor, AlphaEdit) and not isinstance(editor, BetaEdit))
    limit = max(d_in // 2, 1)
    held = folds = written = 0
    double = factors = 0.0
    rank = max(scene.rank or 0, 1)
    sizes = [1] * sum(scene.stream.sizes) if getattr(editor, "in_order", False) else scene.stream.sizes
    for n in sizes:
        if not n:
            continue
        based = dense_metric or folds > 0
        double += (2.0 * d_in**2 * n if based else d_in * n) + 4.0 * d_in * n**2
        inside, cube = _inside(scene, n, held, written)
        double, factors = double + inside, factors + cube
        written += n
        if remembers:
            double += 4.0 * held * d_in * n + 3.0 * held**2 * n
            held += n
            if held >= limit:
                double += 2.0 * held * d_in**2
                held, folds = 0, folds + 1
        double += 2.0 * d_out * d_in * max(n, rank if scene.rank and len(sizes) == len(scene.stream.sizes) else n)
    factors += folds * float(d_in) ** 3
    return Work("solves", double=layers * double, factors=layers * factors)


def _inside(scene: Scene, n: int, held: int, written: int) -> tuple[float, float]:
    r"""Products and factorisations of keeping one solve out of ``c`` protected directions.

    Keys ``4 c I n``, then :class:`lit_edit.solver.Within`: the metric's inverse of the directions (``4 h I c + 2 h^2 c`` where
    ``h`` keys are remembered, ``4 I^2 c`` of a spectral one), ``2 I c^2`` and a Cholesky factor of them, and for the keys
    ``4 c I n + 2 c^2 n``. EvoEdit needs none of that, and takes directions out of keys twice, before the solve and behind it.
    """
    d_in, editor = scene.shape[1], scene.editor
    c = closed_directions(editor, d_in, written, scene.protected)
    if not c:
        return 0.0, 0.0
    if isinstance(editor, EvoEdit):
        return 16.0 * d_in * c * n, 0.0
    metric = (4.0 * held * d_in + 2.0 * held**2 + (4.0 * d_in**2 if isinstance(editor, BetaEdit) else 0.0)) * c
    return metric + 2.0 * d_in * c**2 + 8.0 * d_in * c * n + 2.0 * c**2 * n, c**3 / 3


def _journal(scene: Scene) -> Work:
    """The product of a batch's factors, once for the run and once in the form that replays use (three products)."""
    d_out, d_in = scene.shape
    if not scene.settings.factors:
        return Work("journal")
    ranks = [scene.rank_of(batch) or 0 for batch in scene.stream.read]
    return Work("journal", double=scene.stream.scale * len(scene.layers) * 2.0 * d_out * d_in * sum(ranks))


def _looking(scene: Scene) -> Work:
    """Spectral drift: two decompositions at a full look, a block Krylov space at the others of large matrices."""
    count, full = looks(scene)
    least, most = min(scene.shape), max(scene.shape)
    if not count:
        return Work("drift")
    if least <= EXACT_SIDE:
        full = count
    layers = -(-len(scene.layers) // scene.settings.ranks)
    (double, factors), (double_values, factors_values) = decomposition(scene), decomposition(scene, vectors=False)
    thin = count - full
    krylov = 2.0 * least**2 * most + 2.0 * least**2 * (least / 4)
    return Work(
        "drift",
        double=layers * (full * (double + double_values) + thin * krylov),
        factors=layers * (full * (factors + factors_values) + thin * least**3 / 3),
    )


def evaluations(scene: Scene) -> tuple[float, int]:
    """How many times an edit is scored in the whole run, and how many validations there are."""
    settings, total = scene.settings, sum(scene.stream.batches)
    scored = count = 0.0
    if settings.baseline:
        scored, count = len(spread(total, scene.review)), 1
    done = 0
    for number, size in enumerate(scene.stream.batches, start=1):
        done += size
        if settings.val_every and number % settings.val_every == 0:
            scored, count = scored + len(spread(done, scene.review)), count + 1
    known = settings.val_every and len(scene.stream.batches) % settings.val_every == 0 and total <= scene.review
    if settings.final and not known:  # else the last validation was of all edits
        scored, count = scored + total, count + 1
    return scored, int(count)


def _evaluation(scene: Scene) -> Work:
    scored, count = evaluations(scene)
    one = _scored(scene, scene.scoring) / max(scene.scored, 1)
    # Every batch is scored right after it was written, too.
    immediate = sum(scene.stream.batches)
    model = one * (scored + immediate) + count * _scored(scene, scene.probes)
    return Work("evaluation", model=model / scene.workers)


def _scored(scene: Scene, grids: Iterable[Grid]) -> float:
    return sum(_whole(scene, grid.tokens, grid.columns, grid.spots) for grid in grids)
