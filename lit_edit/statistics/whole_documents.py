"""So many whole documents instead of so many tokens: how published second moments were made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus, DocumentCorpus, HubCorpus
from lit_edit.errors import EditError
from lit_edit.prompts import Encoder


class WholeDocuments(Corpus):
    """The first documents of a corpus, each cut at the model's context alone, and used to the last token.

    As it stands this is what released statistics were made from (ROME, arXiv 2202.05262; MEMIT, arXiv 2210.07229): 100,000
    articles of Wikipedia, some 44 million tokens. A token budget (``--model.moment_tokens``) still applies where one is given.

    Args:
        documents: how many; the released statistics of some models take 10,000.
        corpus: where they come from; its own ``max_tokens`` does not apply.
        max_tokens: longest document in tokens; default: the model's context (released code caps Mistral and Qwen2 at 4096).

    Raises:
        EditError: for less than one document or token.
    """

    def __init__(self, documents: int = 100_000, corpus: DocumentCorpus | None = None, max_tokens: int | None = None) -> None:
        if documents < 1 or (max_tokens is not None and max_tokens < 1):
            raise EditError(f"WholeDocuments needs at least one document and one token, not {documents} and {max_tokens}")
        self.count, self.corpus, self.max_tokens = documents, corpus or HubCorpus(), max_tokens

    def identity(self) -> dict[str, Any]:
        """See :meth:`Corpus.identity`."""
        return {"corpus": "documents", "count": self.count, "max_tokens": self.max_tokens, "of": self.corpus.identity()}

    def token_rows(self, anatomy: Anatomy, encoder: Encoder) -> Iterator[list[int]]:
        """See :meth:`Corpus.token_rows`."""
        longest = min(self.max_tokens or anatomy.positions, anatomy.positions)
        for text in islice(self.corpus.documents(), self.count):
            yield encoder.encode(text)[0][:longest]
