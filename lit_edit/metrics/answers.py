"""Generated answers against accepted ones, and prompts that negate an edit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_edit.metrics.functional import record_means
from lit_edit.request import EditRequest

Scoring = Literal["exact_match", "containment"]

ANSWER_ENDS = ("\n",)
"""Where a generated answer ends besides the end of the text: at a line's. (A period would cut "St. Louis".)"""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Scripts that put no blanks between words: no word boundary can be asked for there.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "of",
        "to",
        "its",
        "his",
        "her",
        "their",
        "this",
        "that",
        "these",
        "those",
    ]
)


def normalised(text: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no English articles, single blanks.

    As in SQuAD (Rajpurkar et al. 2016, the released ``normalize_answer``), except that punctuation beyond ASCII (curly quotes,
    dashes) goes too, composed and decomposed accents are the same, and a text of nothing but articles ("The The") keeps them.

    Example:
        >>> normalised(' The “Eiffel-Tower”, in Paris! ')
        'eiffeltower in paris'
    """
    text = unicodedata.normalize("NFC", text).lower()
    # ASCII symbols count as punctuation in SQuAD ($, +, <, ...); Unicode's own categories call them symbols.
    kept = "".join(c for c in text if not (unicodedata.category(c)[0] == "P" or (c.isascii() and c.isprintable() and _odd(c))))
    bare = " ".join(_ARTICLES.sub(" ", kept).split())
    return bare or " ".join(kept.split())


def _odd(character: str) -> bool:
    return not (character.isalnum() or character.isspace())


def exact_match(generated: str, accepted: Sequence[str]) -> bool:
    """Whether a generated answer equals any accepted one, both :func:`normalised`; nothing equals an empty answer.

    Example:
        >>> exact_match(" the Netherlands.", ["Holland", "Netherlands"]), exact_match("Netherlands, of course", ["Netherlands"])
        (True, False)
    """
    text = normalised(generated)
    return bool(text) and any(text == normalised(answer) for answer in accepted)


def containment(generated: str, accepted: Sequence[str]) -> bool:
    """Whether a generated answer holds any accepted one as whole words, both :func:`normalised`.

    Words are not asked for at an edge in a script without blanks (Chinese, Japanese, Thai, ...).

    Example:
        >>> containment("It is in Paris, France", ["Paris"]), containment("a Parisian", ["Paris"])
        (True, False)
    """
    text = normalised(generated)
    for answer in map(normalised, accepted):
        if not answer:
            continue
        left = "" if _UNSPACED.match(answer[0]) else r"(?<!\w)"
        right = "" if _UNSPACED.match(answer[-1]) else r"(?!\w)"
        if re.search(left + re.escape(answer) + right, text):
            return True
    return False


class GeneratedAnswers(Metric):
    r"""Mean over records of the share of a record's generated answers that match.

    .. math:: \frac{1}{|R|} \sum_{r \in R} \frac{1}{|G_r|} \sum_{g \in G_r} \mathbb{1}[g \text{ matches an accepted answer}]

    The model writes freely and is judged by what it wrote, unlike under teacher forcing, which gives away content and length
    of the answer ("The Mirage of Model Editing", arXiv 2502.11177). Records without answers are left out.

    As input: per record, its generated answers; per record, the accepted answers of each of them. As output: a float64 scalar,
    ``nan`` if no record counted.

    Args:
        scoring: ``exact_match`` or ``containment``, see the functions of these names.
        **kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``scoring`` is neither, or answers and accepted answers do not pair up.

    Example:
        >>> rate = GeneratedAnswers("containment")
        >>> rate.update([["Paris, France", "Rome"], []], [[["Paris"], ["Paris"]], []])
        >>> float(rate.compute())
        0.5
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, scoring: Scoring = "exact_match", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if scoring not in ("exact_match", "containment"):
            raise ValueError(f"scoring is 'exact_match' or 'containment', not {scoring!r}")
        self.scoring = scoring
        # Named by scoring: a collection merges metrics whose states have equal names and happen to be equal.
        for state in ("total", "records"):
            self.add_state(f"{scoring}_{state}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, generated: Sequence[Sequence[str]], accepted: Sequence[Sequence[Sequence[str]]]) -> None:
        """Add records."""
        if [len(record) for record in generated] != [len(record) for record in accepted]:
            raise ValueError("every generated answer needs its own list of accepted answers, record by record")
        match = exact_match if self.scoring == "exact_match" else containment
        rows = [
            [float(match(ours, theirs)) for ours, theirs in zip(texts, answers, strict=True)]
            for texts, answers in zip(generated, accepted, strict=True)
        ]
        means = record_means(rows)
        self._add("total", float(means.sum()))
        self._add("records", float(len(means)))

    def _add(self, state: str, value: float) -> None:
        name = f"{self.scoring}_{state}"
        setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """The rate so far."""
        total, records = (getattr(self, f"{self.scoring}_{state}") for state in ("total", "records"))
        assert isinstance(total, Tensor) and isinstance(records, Tensor)
        return total / records

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values; needs matplotlib."""
        return self._plot(val, ax)


def negation_prompt(request: EditRequest) -> str:
    """The edit prompt turned into its negation, to which the new answer is a wrong one.

    An edited model that gives the new answer here too has learnt to repeat it after the subject, not a fact ("Built on Sand",
    arXiv 2510.00625). The wording is ours: ``It is not true that ...`` before a statement, ``... not`` after one that follows
    a question, ``The answer is not`` after a question alone.

    Example:
        >>> negation_prompt(EditRequest("The mother tongue of {} is", "Ada Lovelace", "French"))
        'It is not true that the mother tongue of Ada Lovelace is'
        >>> negation_prompt(EditRequest("Where was {} born?", "Ada Lovelace", "Rome"))
        'Where was Ada Lovelace born? The answer is not'
    """
    template = request.prompt
    if template.endswith("?"):
        return f"{request.text} The answer is not"
    if "?" in template.replace("{}", ""):
        return f"{request.text} not"
    first = template.split(" ", 1)[0]
    # A name stays as it is; only words that are capitals for opening the sentence are made small.
    if first.lower() in _SMALL:
        template = template[0].lower() + template[1:]
    return f"It is not true that {template.replace('{}', request.subject)}"
