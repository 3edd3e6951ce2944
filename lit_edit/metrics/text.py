"""What generated text is like: n-gram entropy and TF-IDF similarity, as pure functions of texts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_edit.errors import EditError
from lit_edit.metrics.words import words
from lit_edit.options.documents import load_json

_TOKEN = re.compile(r"(?u)\b\w\w+\b")


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    r"""Shannon entropy in bits of the n-grams of one text.

    .. math:: H_n = -\sum_g f_g \log_2 f_g

    with :math:`f_g` the share of n-gram :math:`g` among all; 0 where there is none.

    Example:
        >>> ngram_entropy(["a", "b", "a", "b", "c"], 2)
        1.5
    """
    counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) + 0.0  # never -0.0


def text_entropy(text: str, sentences_first: bool = True) -> float:
    r"""Weighted n-gram entropy of one text, in bits: :math:`\frac12 (\frac23 H_2 + \frac43 H_3)` over its words.

    "Generation entropy" or, times 100 and averaged, "fluency" (Zhang et al. 2018; Meng et al. 2022, with these weights in the
    released ROME and MEMIT code): about 6.2 for ordinary English of 100 tokens, low where a text repeats itself. It grows with
    the length of a text, so only texts of about one length compare.

    Args:
        text: the whole text, its prompt included.
        sentences_first: see :func:`lit_edit.metrics.words.words`. The released code cuts with a trained sentence model that has
            to be downloaded; numbers differ by about a hundredth of a bit at an abbreviation.

    Example:
        >>> text_entropy("one two three")
        0.3333333333333333
    """
    tokens = words(text, sentences_first)
    return (2 / 3 * ngram_entropy(tokens, 2) + 4 / 3 * ngram_entropy(tokens, 3)) / 2


@dataclass(frozen=True)
class TfIdf:
    """Vocabulary and inverse document frequencies that texts are compared under.

    The conventions are those of scikit-learn's ``TfidfVectorizer`` as it comes: lower case, words of two or more characters,
    raw counts times a smoothed idf, vectors of unit length.
    """

    idf: Mapping[str, float]
    """Inverse document frequency of every known word."""

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfIdf:
        r"""Learn from ``n`` documents: :math:`\mathrm{idf}_w = \ln \frac{1 + n}{1 + n_w} + 1`; :math:`n_w` of them hold w.

        Raises:
            EditError: if no document holds a word.

        Example:
            >>> found = TfIdf.fit(["The cat sat.", "The dog"])
            >>> {word: round(idf, 3) for word, idf in found.idf.items()}
            {'cat': 1.405, 'dog': 1.405, 'sat': 1.405, 'the': 1.0}
        """
        counts = Counter(word for text in texts for word in set(_tokens(text)))
        if not counts:
            raise EditError(f"none of the {len(texts)} texts holds a word of two or more characters to compare texts by")
        return cls({word: math.log((1 + len(texts)) / (1 + counts[word])) + 1 for word in sorted(counts)})

    def vector(self, text: str) -> dict[str, float]:
        """Unit vector of a text by word; empty if it holds no known word."""
        weights = {word: count * self.idf[word] for word, count in Counter(_tokens(text)).items() if word in self.idf}
        norm = math.sqrt(sum(value**2 for value in weights.values()))
        return {word: value / norm for word, value in weights.items()}

    def cosine(self, one: str, other: str) -> float:
        """Cosine of two texts in [0, 1]; 0 if either holds no known word (the released code divides by zero there).

        Example:
            >>> found = TfIdf.fit(["cat sat", "cat ran"])
            >>> round(found.cosine("cat cat", "cat sat"), 4), found.cosine("", "cat")
            (0.5797, 0.0)
        """
        a, b = self.vector(one), self.vector(other)
        return min(1.0, math.fsum(value * b[word] for word, value in a.items() if word in b))

    def save(self, path: str | Path) -> None:
        """Write as JSON: ``vocabulary`` (column of each word) and ``idf`` (by column)."""
        order = sorted(self.idf)
        content = {"vocabulary": {word: at for at, word in enumerate(order)}, "idf": [self.idf[word] for word in order]}
        Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TfIdf:
        """Read what :meth:`save` wrote, or the two attributes of a fitted scikit-learn vectoriser in the same layout.

        Raises:
            EditError: if the file cannot be read, is of another layout, or columns do not match.
        """
        wanted = 'it has to hold {"vocabulary": {word: column}, "idf": [one number per column]}'
        try:
            content = load_json(Path(path).read_text(encoding="utf-8"))
            columns, idf = content["vocabulary"], content["idf"]
            if sorted(columns.values()) != list(range(len(idf))) or not idf:
                raise EditError(f"{path} names {len(columns)} words and {len(idf)} idf values that do not match; {wanted}")
            return cls({str(word): float(idf[at]) for word, at in columns.items()})
        except OSError as error:
            raise EditError(f"{path} cannot be read ({type(error).__name__})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EditError(f"{path} is no TF-IDF file ({type(error).__name__}: {error}); {wanted}") from error


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())
