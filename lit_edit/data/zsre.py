"""ZsRE as MEND distributes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.reader import Reader, as_text, identifier, literal_template, optional_text, text, texts
from lit_edit.errors import MalformedRecord, brief
from lit_edit.request import EditRequest


class ZsRE(Reader):
    """Zero-shot relation extraction questions in MEND's schema (Mitchell et al. 2022, https://arxiv.org/abs/2110.11309).

    Read as the MEMIT code reads it (``dsets/zsre.py``), so that numbers compare:

    * ``target_new`` is ``answers[0]``, the *correct* answer: the edit teaches a fact, it does not counter one. MEND's
      ``alt`` (a wrong answer, which EasyEdit writes), ``pred`` (what MEND's model said) and ``cond`` (both with the
      question) are not used, and there is no ``target_true``. Further ``answers`` have no place in a request.
    * The neighbourhood is one Natural Questions item, ``loc + "?"`` with answer ``loc_ans``; the prefix
      ``"nq question: "`` stays.
    * A question that names the subject twice keeps the earlier mention as text and edits at the last one. (The MEMIT
      code replaces both, and then stops with an assertion.)
    * EasyEdit's copies may have ``portability`` with a ``New Question``; its ``New Answer`` follows from the answer that
      EasyEdit writes, ``alt``, not from the one written here, so it is not read.
    """

    schema: ClassVar[str] = "ZsRE (subject, src, answers, rephrase, loc, loc_ans)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with ``src`` and at least one other of MEND's names."""
        return "src" in row and not {"answers", "loc", "alt", "rephrase"}.isdisjoint(row)

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row; see :meth:`Reader.request`."""
        subject = text(row, "subject", "the entity that the question is about")
        question = text(row, "src", "the question, with the subject in it")
        return EditRequest(
            prompt=literal_template(question, subject, prompt_field="src", subject_field="subject"),
            subject=subject,
            target_new=_answer(row),
            paraphrases=texts(row, "rephrase", "the same question in other words"),
            neighbourhood=_unrelated(row),
            case_id=identifier(row, index),
            source=source,
        )


def _answer(row: Mapping[str, Any]) -> str:
    """The first of the accepted answers."""
    answers = row.get("answers")
    if not isinstance(answers, (list, tuple)) or not answers:
        found = "is missing" if answers is None else f"holds {brief(answers)}"
        raise MalformedRecord("answers", f"{found}; it is a list of the right answers, the first of which is written")
    return as_text(answers[0], "answers[0]", "the answer to write")


def _unrelated(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The Natural Questions item, if the row has one."""
    question = optional_text(row, "loc", "a question about something else")
    return () if question is None else ((question + "?", text(row, "loc_ans", "the answer to the question in loc")),)
