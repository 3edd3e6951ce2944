"""Memory of what happens before the first batch: second moments, spectra, and what the editor makes of them.

Legend: I = d_in, M = min(d_out, d_in).
"""

from __future__ import annotations

from collections.abc import Iterable

from lit_edit.corpus import SampledCorpus
from lit_edit.plan.rehearsed import forwarded
from lit_edit.plan.result import Part
from lit_edit.plan.scene import Scene
from lit_edit.plan.standing import spectra
from lit_edit.plan.work import Grid
from lit_edit.statistics.preparation import _AT_ONCE


def preparing(scene: Scene) -> list[Part]:
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
        working = 8 * d_out * d_in + eigen(least) + 8 * least * max(d_out, d_in) + one
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
    return max(found, key=total)


def _making(scene: Scene) -> int:
    return scene.state.inverse // len(scene.layers) + scene.state.preparing


def eigen(side: int) -> int:
    """Bytes of a matrix, its eigenvectors and the workspace of LAPACK's divide and conquer, float64."""
    return 8 * 5 * side**2


def _pass_tokens(scene: Scene) -> int:
    return min(_AT_ONCE, scene.moment_tokens)


def moments_pass(scene: Scene) -> int:
    """Bytes of a pass over the corpus: the model up to the last edited block, and the keys of one layer with their product."""
    d_in, tokens = scene.shape[1], _pass_tokens(scene)
    length = scene.row_tokens
    run = forwarded(scene, Grid(max(1, tokens // length), length), scene.layers[-1])
    size = scene.network.anatomy.dtype.itemsize
    keys = tokens * d_in * (size + (4 if size < 4 else 0)) + 4 * tokens * d_in
    return run + keys + 4 * max(512, -(-d_in // 8)) * d_in


def _sampling(scene: Scene) -> int:
    network, corpus = scene.network, scene.corpus
    heads, width = network.heads
    tokens = corpus.rows_at_once * min(corpus.length, network.anatomy.positions)
    cache = 2 * tokens * heads * width * len(network.anatomy.blocks) * network.anatomy.dtype.itemsize
    # The cache is written anew, longer by one, block by block; the likelihoods are copied three times.
    return int(cache + cache // len(network.anatomy.blocks) + 12 * corpus.rows_at_once * network.anatomy.vocabulary)


def total(parts: Iterable[Part]) -> int:
    """Bytes of some parts together."""
    return sum(part.bytes for part in parts)
