"""ROUGE: how much of a reference summary's words a summary repeats (Lin 2004)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits, as Google's ``rouge_score`` counts them; no stemming.

    >>> words("It's 9 o'clock.")
    ['it', 's', '9', 'o', 'clock']
    """
    return re.findall(r"[^\W_]+", text.lower())


def rouge_n(said: Sequence[str], reference: Sequence[str], n: int) -> float:
    r"""F1 of clipped n-gram counts: with ``m`` common n-grams, :math:`2m / (|said| + |reference|)` in n-grams.

    >>> rouge_n(["the", "cat", "sat"], ["the", "cat"], 1), rouge_n(["a"], ["a"], 2)
    (0.8, 0.0)
    """
    grams = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (said, reference)]
    total = grams[0].total() + grams[1].total()
    return 2 * (grams[0] & grams[1]).total() / total if total else 0.0


def rouge_l(said: Sequence[str], reference: Sequence[str]) -> float:
    r"""F1 of the longest common subsequence ``m``: :math:`2m / (|said| + |reference|)` in words, over the whole text.

    >>> rouge_l(["a", "x", "b", "c"], ["a", "b", "c", "d"])
    0.75
    """
    line = [0] * (len(reference) + 1)
    for word in said:
        left_above = 0
        for j, other in enumerate(reference, start=1):
            above = line[j]
            line[j] = left_above + 1 if word == other else max(above, line[j - 1])
            left_above = above
    total = len(said) + len(reference)
    return 2 * line[-1] / total if total else 0.0


def rouge(said: str, reference: str) -> tuple[float, float, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, each in [0, 1].

    >>> rouge("The cat sat.", "the cat")
    (0.8, 0.6666666666666666, 0.8)
    """
    mine, theirs = words(said), words(reference)
    return rouge_n(mine, theirs, 1), rouge_n(mine, theirs, 2), rouge_l(mine, theirs)
