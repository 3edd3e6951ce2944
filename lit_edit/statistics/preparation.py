"""What is computed once from the original model and kept in the store: second moments and spectra."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus
from lit_edit.moments import WINDOW, collect
from lit_edit.parallel.ranks import Ranks
from lit_edit.prompts import Encoder
from lit_edit.spectrum import Spectrum, decompose
from lit_edit.statistics.artefacts import Artefacts
from lit_edit.statistics.convergence import about, report
from lit_edit.statistics.partial import Partial, Stale
from lit_edit.statistics.reference_moments import imported
from lit_edit.statistics.whole_documents import WholeDocuments
from lit_edit.store import Store, fingerprint

log = logging.getLogger(__name__)

TOKENS_PER_INPUT = 10
"""Tokens per input dimension for a second moment; arXiv 2506.04226 (FastMEMIT) finds 2 to 10 enough."""

_AT_ONCE = 8192
"""Padded tokens per forward pass."""


def second_moments(
    anatomy: Anatomy,
    encoder: Encoder,
    layers: Sequence[int],
    corpus: Corpus,
    tokens: int | None,
    store: Store,
    tell: Callable[[str, int, int], None],
    moments_from: str | None = None,
    say: Callable[[str], None] = log.info,
    ranks: Ranks | None = None,
    weights: str | None = None,
) -> dict[int, SecondMoment]:
    """Second moments of the keys of several layers: imported, from the store, or in one pass over the corpus.

    Args:
        anatomy: the unedited model.
        encoder: its tokenizer.
        layers: edited blocks.
        corpus: where the text comes from.
        tokens: how many tokens; ``None`` for :data:`TOKENS_PER_INPUT` per input dimension, or for all of them where the corpus
            is :class:`lit_edit.statistics.whole_documents.WholeDocuments`.
        store: where results are kept, and what an interrupted pass has added up.
        tell: told ``("second moments", tokens so far, tokens wanted)``.
        moments_from: files of other implementations to use instead; see :func:`lit_edit.statistics.reference_moments.imported`.
        say: told in a sentence what was found.
        ranks: who shares the passes; only the first one's store is asked and written to.
        weights: hash of all parameters, if it is known.

    Raises:
        EditError: if the corpus or a file cannot be read, or a cached result belongs to other weights.
    """
    if moments_from is not None:
        return imported(moments_from, anatomy, encoder, layers, say)
    ranks = ranks or Ranks()
    whole = tokens is None and isinstance(corpus, WholeDocuments)
    wanted = sys.maxsize if whole else tokens or TOKENS_PER_INPUT * anatomy.d_inner
    if weights is None:
        weights = ranks.of_first(fingerprint(dict(anatomy.model.named_parameters())) if ranks.first else "")
    shared = {
        "kind": "second-moment",
        "weights": weights,
        "reading": _reading(anatomy, encoder),
        "corpus": corpus.identity(),
        "tokens": None if whole else wanted,
        "version": 3,
    }
    kept = Artefacts(store, {layer: {**shared, "layer": layer} for layer in layers}, ranks)
    if kept.missing:
        about_batches = {"batching": [WINDOW, _AT_ONCE], **({"rank": [ranks.rank, ranks.size]} if ranks.size > 1 else {})}
        partial = Partial(store, {**shared, "kind": "second-moment-partial", "layers": kept.missing, **about_batches})
        fresh = _collected(anatomy, encoder, kept.missing, corpus, wanted, partial, tell, ranks)
        for layer, moment in fresh.items():
            kept.put(layer, moment.tensors(), about(moment))
        partial.remove()
    moments = {layer: SecondMoment.of(kept.get(layer), anatomy.device) for layer in layers}
    report(moments, wanted, say)
    return moments


def _collected(
    anatomy: Anatomy,
    encoder: Encoder,
    layers: list[int],
    corpus: Corpus,
    wanted: int,
    partial: Partial,
    tell: Callable[[str, int, int], None],
    ranks: Ranks,
) -> dict[int, SecondMoment]:
    """One pass over the corpus, from where an earlier one was interrupted if it was."""

    def told(rows: _Counted) -> Callable[[int, int], None]:
        return lambda done, total: tell("second moments", done, rows.expected(done) if total == sys.maxsize else total)

    def once() -> dict[int, SecondMoment]:
        rows = _Counted(corpus, anatomy, encoder)
        return collect(anatomy, rows, layers, wanted, encoder.pad, _AT_ONCE, told(rows), partial, ranks)

    try:
        return once()
    except Stale:
        log.warning("the corpus gives other text than when its second moments were interrupted; starting over")
        partial.remove()
        return once()


class _Counted:
    """Rows of a corpus, counted as they are read.

    Args:
        corpus: where they come from.
        anatomy: the unedited model.
        encoder: its tokenizer.
    """

    def __init__(self, corpus: Corpus, anatomy: Anatomy, encoder: Encoder) -> None:
        self.rows, self.documents, self.read, self.tokens = corpus.token_rows(anatomy, encoder), 0, 0, 0
        if isinstance(corpus, WholeDocuments):
            self.documents = corpus.count

    def __iter__(self) -> Iterator[list[int]]:
        for row in self.rows:
            self.read, self.tokens = self.read + 1, self.tokens + len(row)
            yield row
        self.documents = self.read

    def expected(self, done: int) -> int:
        """Tokens of all documents, if they go on being as long as they were."""
        return max(round(self.tokens / max(self.read, 1) * self.documents), done)


def _reading(anatomy: Anatomy, encoder: Encoder) -> str:
    """Hash of what turns text into keys besides the weights: the configuration (rope, norms, ...) and the tokenizer."""
    said = anatomy.model.config.to_dict()  # type: ignore[union-attr, operator]
    config = {name: str(value) for name, value in said.items() if not name.startswith(("_", "transformers"))}
    tokenizer = encoder.tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256((json.dumps(config, sort_keys=True) + tokenizer).encode()).hexdigest()


def spectra(
    weights: dict[int, Tensor], store: Store, tell: Callable[[str, int, int], None], ranks: Ranks | None = None
) -> dict[int, Spectrum]:
    """Singular value decompositions of the original weights, from the store or computed.

    Args:
        weights: original weight ``[d_out, d_in]`` by layer.
        store: where results are kept.
        tell: told ``("spectra", layers done, layers)``.
        ranks: who shares the layers; only the first one's store is asked and written to.

    Raises:
        EditError: if a cached result belongs to other weights.
    """
    ranks = ranks or Ranks()
    identities = {
        layer: {"kind": "spectrum", "weights": fingerprint({"weight": weight}), "version": 1}
        for layer, weight in weights.items()
    }
    kept = Artefacts(store, identities, ranks)
    own: dict[int, Spectrum] = {}
    with ranks.together():
        for index, layer in enumerate(kept.missing):
            if index % ranks.size == ranks.rank:
                own[layer] = decompose(weights[layer])
            tell("spectra", len(weights) - len(kept.missing) + index + 1, len(weights))
    for index, layer in enumerate(kept.missing):
        fresh = own.get(layer)
        found = ranks.of(index % ranks.size, None if fresh is None else [fresh.left, fresh.sigma, fresh.right])
        kept.put(layer, dict(zip(("left", "sigma", "right"), found, strict=True)))
    result = {}
    for layer, weight in weights.items():
        part = kept.get(layer)
        result[layer] = Spectrum(*(part[name].to(weight.device) for name in ("left", "sigma", "right")))
    tell("spectra", len(weights), len(weights))
    return result
