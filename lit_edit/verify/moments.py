"""Replays the recorded second moments of keys: from the recorded texts, through the model, to ``C`` and its eigenvalues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.corpus import DocumentCorpus
from lit_edit.errors import EditError
from lit_edit.moments import collect
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance


class RecordedTexts(DocumentCorpus):
    """The texts that the recorded statistics were made from.

    Args:
        texts: documents.
    """

    def __init__(self, texts: list[str]) -> None:
        super().__init__(max_tokens=2**31)  # cut at the model's own length only, as the reference does
        self.texts = texts

    def identity(self) -> dict[str, Any]:
        """See :meth:`lit_edit.corpus.Corpus.identity`."""
        return {"corpus": "recorded", "texts": self.texts}

    def documents(self) -> Iterator[str]:
        """See :meth:`lit_edit.corpus.DocumentCorpus.documents`."""
        yield from self.texts


def collected(recording: Recording, layers: list[int]) -> dict[int, SecondMoment]:
    """Second moments of some layers of the original model over the recorded texts.

    Raises:
        EditError: if the set records no texts.
    """
    texts = recording.records.get("stat_texts")
    if not texts:
        raise EditError(f"{recording.folder.parent / 'records.json'} records no stat_texts to collect second moments from")
    recording.restore()
    rows = RecordedTexts(texts).token_rows(recording.anatomy, recording.encoder)
    return collect(recording.anatomy, rows, layers, tokens=2**62, pad=recording.encoder.pad)


def recorded(recording: Recording, layers: tuple[int, ...]) -> tuple[dict[int, SecondMoment], bool]:
    """Second moments for a replay, and whether they are the recorded ones (else they are collected anew)."""
    file = recording.tensors("stats")
    if file is None or any(f"layer{layer}/C" not in file for layer in layers):
        return collected(recording, list(layers)), False
    width = recording.anatomy.d_inner
    return {layer: SecondMoment(file.matrix(f"layer{layer}/C", width, width), 1) for layer in layers}, True


def run(recording: Recording) -> list[Row]:
    """Rows of the statistics: ``C`` per layer, tokens counted, and trace and extreme eigenvalues."""
    tally = Tally(recording, "second moments")
    file = recording.tensors("stats")
    if file is None:
        tally.note("C", "not recorded here")
        return tally.rows()
    layers = [int(match[1]) for _, match in file.names(r"layer(\d+)/C")]
    if not recording.records.get("stat_texts"):
        tally.note("C", "no stat_texts recorded")
        ours = {}
    else:
        ours = collected(recording, layers)
    said = recording.meta.get("stats", {})
    for layer in layers:
        name, width = f"layer{layer}/C", recording.anatomy.d_inner
        about = said.get(f"layer{layer}", {})
        if layer in ours:
            difference = about.get("rel_diff_f32_vs_own_f64")
            allowed = (
                Tolerance(5 * difference, "5 x meta stats.rel_diff")
                if difference
                else Tolerance(THROUGH_MODEL, "float32 model")
            )
            tally.tensor(file, name, "C from the texts", ours[layer].mean, allowed)
            count = said.get(f"layer{layer}/count", about.get("count_own"))
            if count is not None:
                tally.scalar("tokens counted", ours[layer].count, count, Tolerance(0.0, "exact"), name)
        values, _ = SecondMoment(file.matrix(name, width, width), 1).eigen()
        _eigenvalues(tally, name, values, about)
    return tally.rows()


def _eigenvalues(tally: Tally, name: str, values: torch.Tensor, about: dict[str, Any]) -> None:
    """Trace and extremes of the recorded matrix against those told in ``meta.json``."""
    # Eigenvalues carry the absolute rounding of float32 storage, so that the small ones are compared on the largest's scale.
    scale, allowed = float(values[-1]), Tolerance(CLOSED_FORM, "closed form")
    if "trace" in about:
        tally.scalar("trace of C", float(values.sum()), about["trace"], allowed, name)
    for key, value in (("eig_max", values[-1]), ("eig_min", values[0])):
        if key in about:
            tally.add("eigenvalues of C", abs(float(value) - about[key]) / scale, allowed, name)


CHECK = Check("second moments", ("stats.safetensors",), run)
