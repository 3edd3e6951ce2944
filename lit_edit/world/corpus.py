"""The embedded world's general text as a corpus for second moments."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lit_edit.corpus import DocumentCorpus
from lit_edit.world.facts import World
from lit_edit.world.text import general_text


class WorldCorpus(DocumentCorpus):
    """Text about the people of the embedded world and plain text, without any exercise of a skill.

    Args:
        seed: of the text.
        world_seed: of the world.
        max_tokens: documents are cut to this many tokens.
    """

    def __init__(self, seed: int = 1, world_seed: int = 0, max_tokens: int = 128) -> None:
        super().__init__(max_tokens)
        self.seed, self.world_seed = seed, world_seed

    def identity(self) -> dict[str, Any]:
        """See :meth:`lit_edit.corpus.Corpus.identity`; the first documents stand for the way the text is made."""
        return {"corpus": "world", **self.__dict__, "beginning": list(islice(self.documents(), 3))}

    def documents(self) -> Iterator[str]:
        """See :meth:`lit_edit.corpus.DocumentCorpus.documents`; never ends."""
        yield from general_text(World(seed=self.world_seed), self.seed)
