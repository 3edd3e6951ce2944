"""Which answers are scored for an edit, and what their scores say about it.

Names are ``<metric>/<scoring>/<decoding>``; the protocol in front is added by :class:`lit_edit.metrics.EditScores`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_edit.request import EditRequest

TEACHER_FORCED = "teacher_forced"
"""The answer's own tokens are fed, none is generated."""


@dataclass(frozen=True)
class RecordScores:
    """Scores of one edit: by name, one value per prompt; a name is missing where the record has no such prompt."""

    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Asked:
    """One prompt of a record and its answers."""

    metric: str
    prompt: str
    wanted: tuple[str, ...]
    """Accepted answers, the canonical one first."""
    other: str | None = None
    """The answer it is compared with, ``None`` if there is none."""


def asked(request: EditRequest) -> list[Asked]:
    """All prompts of an edit that are judged by the answers in the record."""
    true, new = request.target_true, request.target_new
    found = [Asked("efficacy", request.text, (new,), true)]
    found += [Asked("paraphrase", text, (new,), true) for text in request.paraphrases]
    found += [Asked("neighbourhood", text, (answer,), new) for text, answer in request.neighbourhood]
    found += [Asked(f"portability_{kind}", text, answers) for kind, text, answers in request.portability]
    return found


@dataclass
class Tally:
    """Collects the values of one record."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metric: str, scoring: str, value: float) -> None:
        """One more value; portability of every kind counts towards ``portability`` as well."""
        names = [metric, "portability"] if metric.startswith("portability_") else [metric]
        for name in names:
            self.values.setdefault(f"{name}/{scoring}/{TEACHER_FORCED}", []).append(value)

    def judge(self, what: Asked, wanted: Sequence[tuple[float, Sequence[bool]]], other_nll: float | None) -> None:
        r"""Add everything that one prompt's scores say.

        With mean token NLLs :math:`\ell` of wanted and other answer: *success* is :math:`\ell_w < \ell_o` (a tie is a failure),
        *difference* :math:`e^{-\ell_w} - e^{-\ell_o}`, *probability* :math:`e^{-\ell_w}`, *accuracy* whether every token is
        the argmax (of any accepted answer), *token_accuracy* the share that is (of the best accepted answer).

        Args:
            what: the prompt.
            wanted: mean NLL and right tokens of every accepted answer.
            other_nll: mean NLL of the answer it is compared with.
        """
        nll = wanted[0][0]
        self.add(what.metric, "accuracy", float(any(all(right) for _, right in wanted)))
        self.add(what.metric, "token_accuracy", max(sum(right) / len(right) for _, right in wanted))
        if what.metric in ("efficacy", "paraphrase"):
            self.add(what.metric, "probability", math.exp(-nll))
        if other_nll is not None:
            self.add(what.metric, "success", float(nll < other_nll))
            self.add(what.metric, "difference", math.exp(-nll) - math.exp(-other_nll))

    def close(self) -> RecordScores:
        """The record's scores; a multi-hop question counts as answered if any of its wordings is (MQuAKE's convention)."""
        wordings = self.values.get(f"portability_multi_hop/accuracy/{TEACHER_FORCED}")
        if wordings:
            self.values[f"portability_multi_hop/any_wording/{TEACHER_FORCED}"] = [max(wordings)]
        return RecordScores(self.values)
