"""The flat schema of EasyEdit's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.questions import Question, answers, blocks, canonical, pair
from lit_edit.data.reader import Reader, identifier, optional_text, template, text, texts
from lit_edit.errors import MalformedRecord
from lit_edit.request import EditRequest


class EasyEdit(Reader):
    """EasyEdit's flat schema (Wang et al. 2023, https://arxiv.org/abs/2308.07269).

    ``rephrase_prompt`` (or ``rephrase``) is taken as the paraphrase because the file says so. In EasyEdit's copy of
    CounterFact it is a real paraphrase in about one record of six only; elsewhere it is a prompt of some other kind
    about the subject. Do not report a score on it as a paraphrase score.

    ``locality_prompt`` with ``locality_ground_truth`` becomes the neighbourhood (so EasyEdit's own scripts call it) and
    nothing else; both may be lists of equal length. ``portability_prompt`` with ``portability_ground_truth`` is portability
    of the kind ``unnamed``, the file does not say which.

    The blocks ``portability`` and ``locality`` of KnowEdit (Zhang et al. 2024, https://arxiv.org/abs/2401.01286) fill the
    fields of these names, their kinds in snake case (``reasoning``, ``subject_aliasing``, ``logical_generalization``;
    ``relation_specificity``, ``forgetfulness``). All aliases of all answers are accepted for portability; locality keeps
    the first. ``portability`` with ``New Question`` and ``New Answer``, as in EasyEdit's older files, is of the kind
    ``one_hop``. Of a list in ``ground_truth`` the first is the true target.
    """

    schema: ClassVar[str] = "EasyEdit (prompt, subject, target_new, ground_truth, rephrase_prompt, locality_prompt)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with a ``prompt`` and at least one of the names that only this schema has."""
        own = {"target_new", "ground_truth", "rephrase_prompt", "locality_prompt", "portability_prompt"}
        return "prompt" in row and not own.isdisjoint(row)

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row; see :meth:`Reader.request`."""
        subject = text(row, "subject", "the entity that the fact is about")
        prompt = text(row, "prompt", "the statement to complete, with the subject in it")
        rephrase = "rephrase_prompt" if "rephrase_prompt" in row else "rephrase"
        return EditRequest(
            prompt=template(prompt, subject),
            subject=subject,
            target_new=text(row, "target_new", "the answer to write"),
            target_true=next(iter(answers(row.get("ground_truth"), "ground_truth")), None),
            paraphrases=texts(row, rephrase, "the same question in other words"),
            neighbourhood=_locality(row),
            case_id=identifier(row, index),
            relation=optional_text(row, "relation_id", "the relation's identifier"),
            source=source,
            portability=(
                *portability(row),
                *pair(row, "portability_prompt", "portability_ground_truth", "unnamed"),
            ),
            locality=canonical(blocks(row, "locality")),
        )


def portability(row: Mapping[str, Any]) -> tuple[Question, ...]:
    """The field ``portability`` in either of EasyEdit's forms: one new question, or KnowEdit's kinds.

    Raises:
        MalformedRecord: if it has neither form.
    """
    block = row.get("portability")
    if isinstance(block, Mapping) and "New Question" in block:
        question = text(row, "portability.New Question", "a question that needs the edited fact")
        accepted = answers(block.get("New Answer"), "portability.New Answer")
        if not accepted:
            raise MalformedRecord("portability.New Answer", "is missing; it is the answer to New Question")
        return (("one_hop", question, accepted),)
    return blocks(row, "portability")


def _locality(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Prompts about other things, each with its answer."""
    prompts = texts(row, "locality_prompt", "a prompt whose answer must survive")
    answers = texts(row, "locality_ground_truth", "the answer that must survive")
    if len(prompts) != len(answers):
        raise MalformedRecord(
            "locality_ground_truth",
            f"has {len(answers)} answers for the {len(prompts)} prompts in locality_prompt; give one for each",
        )
    return tuple(zip(prompts, answers, strict=True))
