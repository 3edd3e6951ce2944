"""Perplexity on running text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.probes.base import Probe
from lit_edit.scoring import Scorer


class Perplexity(Probe):
    r"""Token perplexity :math:`\exp\big(-\frac1M \sum_i \log p(x_i \mid x_{<i})\big)` over the documents of a text file.

    Each document is scored on its own, cut to ``max_tokens``; its first token is not scored.

    Args:
        path: UTF-8 text; ``None`` takes the page of plain English that comes with the package.
        separator: what stands between two documents.
        max_tokens: documents are cut to this many tokens.
        limit: number of documents, from the start.
        name: name of the probe.

    Raises:
        EditError: if the file cannot be read or holds no document.
    """

    scoring = "perplexity_per_token/teacher_forced"

    def __init__(
        self, path: str | None = None, separator: str = "\n\n", max_tokens: int = 256, limit: int = 100, name: str = "text"
    ) -> None:
        self.name, self.max_tokens = name, max_tokens
        try:
            if path is None:
                text = resources.files("lit_edit.probes").joinpath("plain_english.txt").read_text(encoding="utf-8")
            else:
                text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise EditError(f"{path} is not UTF-8 text (byte {error.start}); the perplexity probe needs plain text") from None
        except OSError as error:
            raise EditError(f"the text {path} of the perplexity probe cannot be read: {error.strerror}") from None
        self._documents = [part.strip() for part in text.split(separator) if part.strip()][:limit]
        if not self._documents:
            raise EditError(f"the text {path} of the perplexity probe holds no document")

    def items(self) -> Sequence[str]:
        """See :meth:`Probe.items`."""
        return self._documents

    def measure(self, scorer: Scorer, items: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See :meth:`Probe.measure`; mean NLL of a document, weighted by its tokens."""
        longest = min(self.max_tokens, scorer.anatomy.positions)
        rows = [scorer.encoder.encode(text)[0][:longest] for text in items]
        scores = scorer.texts([row for row in rows if len(row) > 1])
        return scores.nll, scores.tokens.float()

    def summarise(self, mean: float) -> float:
        """See :meth:`Probe.summarise`; ``inf`` where the exponential overflows, ``nan`` where nothing was scored."""
        return math.inf if mean >= 700 else math.exp(mean)
