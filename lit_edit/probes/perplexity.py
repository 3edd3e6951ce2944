"""Perplexity on running text, in strided windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from lit_edit.data.source import SUFFIXES
from lit_edit.errors import EditError
from lit_edit.probes.base import Probe
from lit_edit.probes.source import exact_text, read, whole
from lit_edit.prompts import Encoder
from lit_edit.runs.paths import named
from lit_edit.scoring import Scorer


@dataclass(frozen=True)
class Document:
    """One item: where it stands among the documents, and its text."""

    index: int
    text: str


class Perplexity(Probe):
    r"""Perplexity per token and bits per byte of text, every token scored once in windows of as much context as there is.

    .. math:: \exp\Big(\frac1M \sum_i -\log p(x_i \mid x_{<i})\Big), \qquad \frac{\sum_i -\log p(x_i \mid x_{<i})}{B \ln 2}

    over :math:`M` tokens that stand for :math:`B` bytes of UTF-8. A window holds ``window`` tokens and moves by ``stride``; a
    token is scored in the first window that reaches it, so that at least ``window - stride`` tokens stand before it (fewer at
    a text's beginning). Where the tokenizer begins texts with a special token (BOS), every window begins with it; where it does
    not, a text's first token has nothing before it and is not scored. Bits per byte compare models of different tokenizers.

    Args:
        path: a text file (UTF-8), or records with a text field: ``.json``, ``.jsonl``, ``.csv``, ``.parquet``, a hub id
            (see :func:`lit_edit.probes.source.read`); ``None`` takes the page of plain English that comes with the package.
        separator: what stands between two documents of a text file.
        max_tokens: of each document only its first tokens are scored; ``None`` scores all.
        limit: number of documents, from the start; ``None`` takes all.
        name: name of the probe.
        window: tokens that the model sees at once; ``None``, or more than it takes, is as many as it takes.
        stride: tokens between the beginnings of two windows, at most ``window``; ``None`` is half of it. Smaller means more
            context and more time.
        joined: read the documents on as one text, an empty line between two (the usual WikiText number), rather than each on
            its own.
        field: the text's field in records.

    Raises:
        EditError: if an argument is out of range, or, when the documents are first needed, if they cannot be read.
    """

    columns = ("nll_sum", "tokens", "bytes")
    shown = "perplexity_per_token/teacher_forced"
    higher_is_better = False

    def __init__(
        self,
        path: str | None = None,
        separator: str = "\n\n",
        max_tokens: int | None = None,
        limit: int | None = 100,
        name: str = "text",
        window: int | None = None,
        stride: int | None = None,
        joined: bool = False,
        field: str = "text",
    ) -> None:
        if not separator:
            raise EditError("separator is empty; it is the text that stands between two documents.")
        for argument, value, least in (("max_tokens", max_tokens, 1), ("limit", limit, 1), ("stride", stride, 1)):
            if value is not None:
                whole(argument, value, least)
        if window is not None:
            whole("window", window, 2)
            whole("stride", stride or 1, 1, window)
        self.path, self.separator, self.max_tokens, self.limit, self.name = path, separator, max_tokens, limit, name
        self.window, self.stride, self.joined, self.field = window, stride, joined, field
        self._items: tuple[Document, ...] | None = None
        self._tokens: tuple[Any, list[int], list[tuple[int, int]]] | None = None

    def items(self) -> Sequence[Document]:
        """See :meth:`Probe.items`; the file is read at the first call."""
        if self._items is None:
            texts = [text.strip() for text in self._texts()]
            found = [text for text in texts if text][: self.limit]
            if not found:
                raise EditError(f"the text {self.path} of the probe {self.name} holds no document")
            self._items = tuple(Document(i, text) for i, text in enumerate(found))
        return self._items

    def _texts(self) -> list[str]:
        if self.path is None:
            return self._packaged().split(self.separator)
        file = named(self.path, f"the probe {self.name}")
        plain = file.with_suffix("") if file.suffix == ".gz" else file
        if plain.suffix in SUFFIXES or file.is_dir() or (not file.exists() and plain.suffix not in (".txt", ".md")):
            return read(self.path, self.name, (self.field,), lambda row: exact_text(row, self.field, "the text to score"))
        try:
            return file.read_text(encoding="utf-8-sig").split(self.separator)
        except UnicodeDecodeError as error:
            raise EditError(
                f"{self.path} is not UTF-8 text (byte {error.start}); the perplexity probe needs plain text"
            ) from None
        except OSError as error:
            raise EditError(f"the text {self.path} of the perplexity probe cannot be read: {error.strerror}") from None

    def _packaged(self) -> str:
        return resources.files("lit_edit.probes").joinpath("plain_english.txt").read_text(encoding="utf-8")

    def measure(self, scorer: Scorer, items: Sequence[Document]) -> Tensor:
        """See :meth:`Probe.measure`."""
        longest = min(self.window or scorer.anatomy.positions, scorer.anatomy.positions)
        rows: list[tuple[list[int], int]] = []
        counts = []
        for item in items:
            text, ids, spans, start, end = self._place(scorer.encoder, item)
            lead = leading(spans)
            front, body, spans = ids[:lead], ids[lead:], spans[lead:]
            window = longest - lead
            # Without a token of its own in front, a window's first token has to be one that was scored before.
            stride = min(self.stride or max(window // 2, 1), window if lead else window - 1)
            first = next((i for i, (_, stop) in enumerate(spans) if stop > start), len(body))
            last = next((i for i, (_, stop) in enumerate(spans) if stop > end), len(body))
            if self.max_tokens is not None:
                last = min(last, first + self.max_tokens)
            first = max(first, 0 if lead else 1)
            mine = [part for part in windows(len(body), window, stride, 0 if lead else 1) if part[1] < last and part[2] > first]
            for begin, at, stop in mine:
                at, stop = max(at, first), min(stop, last)
                rows.append((front + body[begin:stop], lead + at - begin))
            scored_from = spans[first - 1][1] if first else 0
            scored_to = spans[last - 1][1] if last > first else scored_from
            size = len(text[scored_from:scored_to].encode()) if mine else 0
            counts.append((len(mine), size))
        return self._sums(scorer, rows, counts)

    def _sums(self, scorer: Scorer, rows: list[tuple[list[int], int]], counts: list[tuple[int, int]]) -> Tensor:
        """One row per document from the scores of its windows."""
        scores = scorer.rows(rows)
        nll, tokens = (scores.nll.double() * scores.tokens).tolist(), scores.tokens.tolist()
        found, at = [], 0
        for parts, size in counts:
            found.append((sum(nll[at : at + parts]), sum(tokens[at : at + parts]), size))
            at += parts
        return torch.tensor(found, dtype=torch.float64).view(-1, len(self.columns))

    def _place(self, encoder: Encoder, item: Document) -> tuple[str, list[int], list[tuple[int, int]], int, int]:
        """The text that a document is read in, its tokens, and the characters of the document in it."""
        if not self.joined:
            return (item.text, *encoder.encode(item.text), 0, len(item.text))
        texts = [document.text for document in self.items()]
        if self._tokens is None or self._tokens[0] is not encoder.tokenizer:
            self._tokens = (encoder.tokenizer, *encoder.encode("\n\n".join(texts)))
        start = sum(len(text) + 2 for text in texts[: item.index])
        end = start + len(item.text) + (2 if item.index + 1 < len(texts) else 0)
        return ("\n\n".join(texts), *self._tokens[1:], start, end)

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`; ``inf`` where the exponential overflows, ``nan`` where nothing was scored."""
        nll, tokens, size = outcomes.sum(0).tolist() if len(outcomes) else (0.0, 0.0, 0.0)
        mean = nll / tokens if tokens else math.nan
        return {
            self.shown: math.inf if mean >= 700 else math.exp(mean),
            "bits_per_byte/teacher_forced": nll / size / math.log(2) if size else math.nan,
        }


def leading(spans: Sequence[tuple[int, int]]) -> int:
    """Number of special tokens (BOS) in front of a text, whose character spans are empty.

    >>> leading([(0, 0), (0, 3), (3, 3), (3, 5)])
    1
    """
    return next((i for i, (start, end) in enumerate(spans) if end > start), len(spans))


def windows(length: int, window: int, stride: int, first: int) -> list[tuple[int, int, int]]:
    """Windows ``(begin, score from, end)`` over a text of so many tokens, each token from ``first`` on scored once.

    >>> windows(10, 4, 2, 1)
    [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    >>> windows(3, 4, 2, 1), windows(5, 4, 4, 0), windows(1, 4, 2, 1)
    ([(0, 1, 3)], [(0, 0, 4), (4, 4, 5)], [])
    """
    found: list[tuple[int, int, int]] = []
    done = first
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        if end > done:
            found.append((begin, done, end))
            done = end
    return found
