"""How long the rows of a corpus are, and how much padding they take together."""

from __future__ import annotations

from itertools import islice
from typing import Any

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import TextCorpus
from lit_edit.moments import WINDOW, _batches
from lit_edit.prompts import Encoder
from lit_edit.statistics.preparation import _AT_ONCE
from lit_edit.world.corpus import WorldCorpus


def corpus_rows(corpus: Any, anatomy: Anatomy, encoder: Encoder, tokens: int) -> tuple[int, float]:
    """Tokens of the longest row of a corpus, and padded tokens for every token, from its first rows.

    A corpus on the hub is not fetched and no text is sampled for it: its rows are taken to be as long as it allows.

    Args:
        corpus: the text for second moments.
        anatomy: the model as shapes.
        encoder: its tokenizer.
        tokens: how many are wanted; 0 for none.

    Raises:
        EditError: if a file of the corpus cannot be read.
    """
    if tokens and isinstance(corpus, TextCorpus | WorldCorpus):
        batches = list(_batches(islice(corpus.token_rows(anatomy, encoder), WINDOW), tokens, _AT_ONCE))
        lengths = [[len(row) for _, row in batch] for batch in batches]
        if lengths:
            padded = sum(len(batch) * max(batch) for batch in lengths)
            return max(map(max, lengths)), padded / sum(map(sum, lengths))
    longest = getattr(corpus, "length", None) or getattr(corpus, "max_tokens", None) or 64
    return max(1, min(int(longest), anatomy.positions, tokens or 1)), 1.0
