"""Recorded measures of text: n-gram entropies and TF-IDF cosines, recomputed by closed form."""

from __future__ import annotations

import re
from typing import Any

import torch

from lit_edit.metrics.text import TfIdf, ngram_entropy, text_entropy
from lit_edit.metrics.words import words
from lit_edit.verify.table import CLOSED_FORM, Tally, Tolerance, relative

_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_EXACT = Tolerance(0.0, "exact")
_SPLITS = {"no_sentence_split": False, "untrained_punkt": True}


def add(tally: Tally, found: dict[str, Any] | None) -> None:
    """Compare everything under ``text_metrics``; nothing where it was not recorded."""
    if found is None:
        return
    for name, recorded in found.get("ngram_entropy", {}).items():
        if name not in _SPLITS:
            tally.note(f"n-gram entropy, {name}", "this way of cutting sentences is not covered")
            continue
        _entropy(tally, found["texts"], recorded, name)
    if "tfidf" in found:
        _cosines(tally, found["tfidf"])


def _entropy(tally: Tally, texts: list[str], recorded: dict[str, Any], name: str) -> None:
    cut = [words(text, _SPLITS[name]) for text in texts]
    whole = torch.tensor([text_entropy(text, _SPLITS[name]) for text in texts], dtype=torch.float64)
    ours = {
        "per_text_entropy": whole,
        "per_text_H2": torch.tensor([ngram_entropy(one, 2) for one in cut], dtype=torch.float64),
        "per_text_H3": torch.tensor([ngram_entropy(one, 3) for one in cut], dtype=torch.float64),
        "mean": whole.mean(),
    }
    for key, value in ours.items():
        if key in recorded:
            tally.add(
                f"n-gram entropy, {name}", relative(value, torch.tensor(recorded[key], dtype=torch.float64)), _CLOSED, key
            )
    for key in recorded:
        if text := re.fullmatch(r"tokens_text(\d+)", key):
            tally.add(f"words, {name}", float(cut[int(text[1])] != recorded[key]), _EXACT, key)


def _cosines(tally: Tally, recorded: dict[str, Any]) -> None:
    path = tally.recording.folder / "tfidf_idf.json"
    if not path.exists():
        tally.note("TF-IDF", "needs tfidf_idf.json, not recorded here")
        return
    tfidf, texts = TfIdf.load(path), tally.recording.records["stat_texts"]
    if fitted := re.search(r"stat_texts\[(\d+):(\d+)\]", str(recorded.get("assets", ""))):
        ours = TfIdf.fit(texts[int(fitted[1]) : int(fitted[2])]).idf
        tally.add("TF-IDF vocabulary", float(set(ours) != set(tfidf.idf)), _EXACT)
        for word, value in ours.items():
            if word in tfidf.idf:
                tally.scalar("idf", value, tfidf.idf[word], _CLOSED, word)
    for (one, other), value in zip(recorded["pairs_of_stat_texts"], recorded["cosine"], strict=False):
        tally.scalar("TF-IDF cosine", tfidf.cosine(texts[one], texts[other]), value, _CLOSED, f"texts {one} and {other}")
    for key, values in recorded.items():
        if span := re.fullmatch(r"joined_(\d+)_(\d+)_vs_(\d+)_(\d+)", key):
            start, end, start_2, end_2 = (int(number) for number in span.groups())
            mine = tfidf.cosine(" ".join(texts[start:end]), " ".join(texts[start_2:end_2]))
            tally.scalar("TF-IDF cosine", mine, values[0], _CLOSED, key)
