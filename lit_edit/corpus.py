"""Where the text for second moments comes from."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.micro_batches import enough_memory
from lit_edit.prompts import Encoder


class Corpus(ABC):
    """Documents as token ids. A new source of text is one subclass."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes two corpora the same, as plain JSON: part of the address of everything computed from it."""

    @abstractmethod
    def token_rows(self, anatomy: Anatomy, encoder: Encoder) -> Iterator[list[int]]:
        """Documents as token ids, each no longer than the model takes.

        Args:
            anatomy: the unedited model.
            encoder: its tokenizer.
        """


class DocumentCorpus(Corpus):
    """A corpus that is text; see :meth:`documents`.

    Args:
        max_tokens: documents are cut to this many tokens.
    """

    def __init__(self, max_tokens: int = 512) -> None:
        self.max_tokens = max_tokens

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The texts, in a fixed order."""

    def token_rows(self, anatomy: Anatomy, encoder: Encoder) -> Iterator[list[int]]:
        """See :meth:`Corpus.token_rows`."""
        longest = min(self.max_tokens, anatomy.positions)
        for text in self.documents():
            ids, _ = encoder.encode(text)
            if ids:
                yield ids[:longest]


class TextCorpus(DocumentCorpus):
    """Plain UTF-8 text files, shuffled by document.

    Args:
        paths: files.
        separator: what stands between two documents.
        max_tokens: documents are cut to this many tokens.
        seed: of the shuffle (the released statistics use seed 1).

    Raises:
        EditError: if a file cannot be read as UTF-8 text.
    """

    def __init__(self, paths: list[str], separator: str = "\n\n", max_tokens: int = 512, seed: int = 1) -> None:
        super().__init__(max_tokens)
        self.paths, self.separator, self.seed = paths, separator, seed

    def _texts(self) -> list[str]:
        texts = []
        for path in self.paths:
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise EditError(f"{path} is not UTF-8 text (byte {error.start}); convert it or name another corpus") from None
            except OSError as error:
                raise EditError(f"the corpus file {path} cannot be read: {error.strerror}") from None
        return texts

    def identity(self) -> dict[str, Any]:
        """See :meth:`Corpus.identity`; the files' contents, not their names."""
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in self._texts()]
        return {
            "corpus": "text",
            "sha256": hashes,
            "separator": self.separator,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }

    def documents(self) -> Iterator[str]:
        """See :meth:`DocumentCorpus.documents`."""
        found = [part.strip() for text in self._texts() for part in text.split(self.separator)]
        found = [part for part in found if part]
        random.Random(self.seed).shuffle(found)
        yield from found


class HubCorpus(DocumentCorpus):
    """A text data set from the Hugging Face hub, streamed; the default is the Wikipedia of the released statistics.

    Args:
        name: data set id.
        config: its configuration.
        split: its split.
        field: the column that holds the text.
        max_tokens: documents are cut to this many tokens.
        seed: of the shuffle within a buffer.
    """

    def __init__(
        self,
        name: str = "wikimedia/wikipedia",
        config: str | None = "20231101.en",
        split: str = "train",
        field: str = "text",
        max_tokens: int = 512,
        seed: int = 1,
    ) -> None:
        super().__init__(max_tokens)
        self.name, self.config, self.split, self.field, self.seed = name, config, split, field, seed

    def identity(self) -> dict[str, Any]:
        """See :meth:`Corpus.identity`."""
        return {"corpus": "hub", **self.__dict__}

    def documents(self) -> Iterator[str]:
        """See :meth:`DocumentCorpus.documents`."""
        from datasets import load_dataset

        try:
            stream = load_dataset(self.name, self.config, split=self.split, streaming=True)
        except Exception as error:
            raise EditError(
                f"the corpus {self.name!r} ({self.config}) cannot be reached ({type(error).__name__}); name text files with "
                "TextCorpus, or leave --model.corpus out to use text that the model itself samples"
            ) from error
        for row in stream.shuffle(seed=self.seed, buffer_size=1000):
            yield row[self.field]


class SampledCorpus(Corpus):
    """Text that the unedited model writes itself: no download, no overlap with any evaluation, any model.

    Rows start from BOS (or a token drawn at random where there is none) and are sampled at temperature 1 with a generator of
    their own. The second moment asks what a layer *usually* reads; a model's own samples are one answer to that (used for
    calibration without data by Williams et al. 2024, arXiv 2410.17170). Published editing results use Wikipedia instead: name
    :class:`HubCorpus` or :class:`TextCorpus` to compare with them.

    Args:
        length: tokens per row.
        rows_at_once: rows sampled together.
        seed: of the sampling.
    """

    def __init__(self, length: int = 64, rows_at_once: int = 64, seed: int = 1) -> None:
        if length < 2:
            raise EditError(f"SampledCorpus needs rows of at least 2 tokens, not {length}")
        self.length, self.rows_at_once, self.seed = length, rows_at_once, seed

    def identity(self) -> dict[str, Any]:
        """See :meth:`Corpus.identity`."""
        return {"corpus": "sampled", **self.__dict__}

    @torch.no_grad()
    def token_rows(self, anatomy: Anatomy, encoder: Encoder) -> Iterator[list[int]]:
        """See :meth:`Corpus.token_rows`; never ends."""
        generator = torch.Generator().manual_seed(self.seed)
        device = anatomy.device
        length, name = min(self.length, anatomy.positions), anatomy.cache_argument
        bos = encoder.tokenizer.bos_token_id
        vocabulary = min(len(encoder.tokenizer), anatomy.vocabulary)
        while True:
            first = torch.randint(vocabulary, (self.rows_at_once, 1), generator=generator)
            ids = (torch.full_like(first, bos) if bos is not None else first).to(device)
            past: dict[str, Any] = {}
            while ids.shape[1] < length:
                new = ids[:, -1:] if past else ids
                # Not in halves: other rows together are other rounding, and other text under the name in the cache.
                with enough_memory("sampling text for the second moments", "a smaller --model.corpus.rows_at_once helps"):
                    output = anatomy.model(input_ids=new, attention_mask=torch.ones_like(ids), use_cache=True, **past)
                past = {name: output[name]}
                p = output.logits[:, -1].float().softmax(-1).cpu()
                # Tokens beyond the tokenizer's vocabulary (padded embeddings) have no text.
                draw = torch.multinomial(p[:, :vocabulary], 1, generator=generator)
                ids = torch.cat([ids, draw.to(device)], dim=1)
            yield from ids.tolist()
