"""What a run holds from its beginning or its first batch to its end, and what of it a checkpoint holds.

Legend: O = d_out, I = d_in, L = edited layers, M = min(d_out, d_in), H = remembered keys, n = requests of a batch.
"""

from __future__ import annotations

from lit_edit.plan.result import Part
from lit_edit.plan.scene import Scene
from lit_edit.plan.state import keeps_moment, needs_targets


def model_parts(scene: Scene) -> list[Part]:
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
        Part("float32 masters", weights(scene, 4), _of_layers(scene)),
        Part("originals", weights(scene, 4), _of_layers(scene)),
    ]


def weights(scene: Scene, size: int) -> int:
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


def kept_parts(scene: Scene) -> list[Part]:
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
        Part("gradients", weights(scene, 4), "the last batch's change, which the optimiser holds"),
        Part("last batch", _thin(scene), "its factors and keys"),
    ]


def _guards(scene: Scene) -> int:
    d_out, d_in = scene.shape
    found = 0
    for guard in scene.guards:
        if getattr(guard, "of", "original") == "current":
            found += len(scene.layers) * (4 * d_out * d_in + 4 * min(d_out, d_in) * (d_out + d_in))
    return found
