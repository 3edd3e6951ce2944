"""What is computed once from the original model and kept in the store: second moments and spectra."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus
from lit_edit.moments import SecondMoment, collect
from lit_edit.prompts import Encoder
from lit_edit.spectrum import Spectrum, decompose
from lit_edit.store import Store, fingerprint

TOKENS_PER_INPUT = 10
"""Tokens per input dimension for a second moment; arXiv 2506.04226 (FastMEMIT) finds 2 to 10 enough."""


def second_moments(
    anatomy: Anatomy,
    encoder: Encoder,
    layers: Sequence[int],
    corpus: Corpus,
    tokens: int | None,
    store: Store,
    tell: Callable[[str, int, int], None],
) -> dict[int, SecondMoment]:
    """Second moments of the keys of several layers, from the store or in one pass over the corpus.

    Args:
        anatomy: the unedited model.
        encoder: its tokenizer.
        layers: edited blocks.
        corpus: where the text comes from.
        tokens: how many tokens; ``None`` for :data:`TOKENS_PER_INPUT` per input dimension.
        store: where results are kept.
        tell: told ``("second moments", tokens so far, tokens wanted)``.

    Raises:
        EditError: if the corpus cannot be read, or a cached result belongs to other weights.
    """
    wanted = tokens or TOKENS_PER_INPUT * anatomy.d_inner
    weights = fingerprint(dict(anatomy.model.named_parameters()))
    shared = {
        "kind": "second-moment",
        "weights": weights,
        "reading": _reading(anatomy, encoder),
        "corpus": corpus.identity(),
        "tokens": wanted,
        "version": 2,
    }
    identities = {layer: {**shared, "layer": layer} for layer in layers}
    found = {layer: store.get(identity) for layer, identity in identities.items()}
    missing = [layer for layer, tensors in found.items() if tensors is None]
    moments = {
        layer: SecondMoment(tensors["mean"].to(anatomy.device), int(tensors["count"]))
        for layer, tensors in found.items()
        if tensors is not None
    }
    if missing:
        rows = corpus.token_rows(anatomy, encoder)
        fresh = collect(
            anatomy, rows, missing, wanted, encoder.pad, on_tokens=lambda done, total: tell("second moments", done, total)
        )
        for layer, moment in fresh.items():
            store.put(identities[layer], moment.tensors())
        moments.update(fresh)
    return moments


def _reading(anatomy: Anatomy, encoder: Encoder) -> str:
    """Hash of what turns text into keys besides the weights: the configuration (rope, norms, ...) and the tokenizer."""
    said = anatomy.model.config.to_dict()  # type: ignore[union-attr, operator]
    config = {name: str(value) for name, value in said.items() if not name.startswith(("_", "transformers"))}
    tokenizer = encoder.tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256((json.dumps(config, sort_keys=True) + tokenizer).encode()).hexdigest()


def spectra(weights: dict[int, Tensor], store: Store, tell: Callable[[str, int, int], None]) -> dict[int, Spectrum]:
    """Singular value decompositions of the original weights, from the store or computed.

    Args:
        weights: original weight ``[d_out, d_in]`` by layer.
        store: where results are kept.
        tell: told ``("spectra", layers done, layers)``.

    Raises:
        EditError: if a cached result belongs to other weights.
    """
    result = {}
    for index, (layer, weight) in enumerate(weights.items()):
        identity = {"kind": "spectrum", "weights": fingerprint({"weight": weight}), "version": 1}
        found = store.get(identity)
        if found is None:
            spectrum = decompose(weight)
            store.put(identity, {"left": spectrum.left, "sigma": spectrum.sigma, "right": spectrum.right})
        else:
            spectrum = Spectrum(*(found[name].to(weight.device) for name in ("left", "sigma", "right")))
        result[layer] = spectrum
        tell("spectra", index + 1, len(weights))
    return result
