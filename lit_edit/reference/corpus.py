"""What the reference model has read, as a corpus for second moments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import count, islice
from typing import Any

from lit_edit.corpus import DocumentCorpus
from lit_edit.reference.data import FactsData
from lit_edit.reference.documents import Library, Shares


class FactsCorpus(DocumentCorpus):
    """Facts in many wordings and general text, without any exercise of a skill.

    The second moment stands for what a layer usually reads, which for large models is taken from an encyclopedia: facts about
    all kinds of subjects within running text.

    Args:
        folder: where facts and text are, see :class:`lit_edit.reference.data.FactsData`.
        text: share of the documents that are general text; the others say a fact.
        seed: of the text.
        max_tokens: documents are cut to this many tokens.
    """

    def __init__(self, folder: str, text: float = 0.5, seed: int = 1, max_tokens: int = 96) -> None:
        super().__init__(max_tokens)
        self.folder, self.text, self.seed = folder, text, seed

    def identity(self) -> dict[str, Any]:
        """See :meth:`lit_edit.corpus.Corpus.identity`; what is read, and the first documents for the way the text is made."""
        knowledge, passages = self._library.knowledge, self._library.passages
        read = repr((knowledge.facts, knowledge.templates, knowledge.patterns, passages.paragraphs))
        return {
            "corpus": "facts",
            "sha256": hashlib.sha256(read.encode()).hexdigest(),
            "text": self.text,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "beginning": list(islice(self.documents(), 3)),
        }

    @cached_property
    def _library(self) -> Library:
        shares = Shares(skills=0.0, text=self.text, names=0.0, fluent=0.0)
        return FactsData(self.folder, held_out_text=None, shares=shares, seed=self.seed).read_library()

    def documents(self) -> Iterator[str]:
        """See :meth:`lit_edit.corpus.DocumentCorpus.documents`; never ends."""
        for batch in count():
            yield from (document.text for document in self._library.documents(batch, 64))
