"""MQuAKE, questions that chain several facts, one or more of which are edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.counterfact import rewrite, target
from lit_edit.data.questions import Question, answers
from lit_edit.data.reader import Reader, as_text, identifier, kind, lookup, optional_text, text, texts
from lit_edit.errors import MalformedRecord
from lit_edit.request import EditRequest


class MQuAKE(Reader):
    """MQuAKE-CF and MQuAKE-T (Zhong et al. 2023, https://arxiv.org/abs/2305.14795).

    A record holds a *list* of edits and questions whose answers need all of them. It becomes one request per edit, in the
    record's order, with the case ids ``"<case_id>-1"``, ``"<case_id>-2"``, ... What belongs to the record as a whole is
    attached to its **last** edit: only then can the questions be answered, and a limit that cuts a record drops them.

    * ``questions`` (three wordings of one question) are portability of the kind ``multi_hop``, with ``new_answer`` and its
      aliases. The paper counts a case as right if *any* wording is; here they are separate items of one request.
    * ``question`` of an edit, the same fact in other words, is its paraphrase.
    * Of the chain after the edit (``new_single_hops``) the facts that the record does not edit are locality of the kind
      ``unedited_hop``, asked by ``cloze``. The file does not promise that no *other* record edits them: among 354
      records of MQuAKE-CF, 61 have such a fact (and with it a multi-hop answer) that another record contradicts.

    ``answer``, ``single_hops`` (the chain before the edit) and ``orig`` are not part of a request.
    """

    schema: ClassVar[str] = "MQuAKE (a list requested_rewrite, questions, new_answer, new_single_hops)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with a list ``requested_rewrite``, or with two of the names that only this schema has and no object there."""
        edits = row.get("requested_rewrite")
        own = {"questions", "new_answer", "new_single_hops"} & set(row)
        return isinstance(edits, (list, tuple)) or (not isinstance(edits, Mapping) and len(own) >= 2)

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """The record's last edit, which its questions belong to; see :meth:`Reader.request`."""
        return self.requests(row, source, index)[-1]

    def requests(self, row: Mapping[str, Any], source: str, index: int) -> tuple[EditRequest, ...]:
        """All edits of one record; see :meth:`Reader.requests`."""
        edits = lookup(row, "requested_rewrite")
        if not isinstance(edits, (list, tuple)) or not edits:
            found = "is missing" if edits is None else "is an empty list" if edits == [] else f"holds {kind(edits)}"
            raise MalformedRecord("requested_rewrite", f"{found}; it is a list of at least one edit")
        case = identifier(row, index)
        made = [rewrite(row, f"requested_rewrite[{i}]") for i in range(len(edits))]
        wordings = [texts(row, f"requested_rewrite[{i}].question", "the edit as a question") for i in range(len(edits))]
        stated = {edit["prompt"].replace("{}", edit["subject"]) for edit in made}
        whole: dict[str, Any] = {"portability": _questions(row), "locality": _unedited(row, stated.union(*wordings))}
        return tuple(
            EditRequest(
                **edit,
                target_true=optional_text(row, target(row, f"requested_rewrite[{i}]", "target_true"), "the former answer"),
                paraphrases=wordings[i],
                case_id=f"{case}-{i + 1}",
                source=source,
                **(whole if i == len(edits) - 1 else {}),
            )
            for i, edit in enumerate(made)
        )


def _questions(row: Mapping[str, Any]) -> tuple[Question, ...]:
    """The multi-hop questions, each with the answer after the edit and its aliases."""
    questions = texts(row, "questions", "a question that needs the edited facts")
    if not questions:
        return ()
    answer = text(row, "new_answer", "the answer to the questions after the edit")
    accepted = tuple(dict.fromkeys((answer, *answers(row.get("new_answer_alias"), "new_answer_alias"))))
    return tuple(("multi_hop", question, accepted) for question in questions)


def _unedited(row: Mapping[str, Any], edited: set[str]) -> tuple[tuple[str, str, str], ...]:
    """The hops of the chain that are none of the edits, which are told by their statements and their questions."""
    hops = lookup(row, "new_single_hops") or []
    if not isinstance(hops, (list, tuple)):
        raise MalformedRecord("new_single_hops", f"holds {kind(hops)}; it is a list of objects with 'question' and 'answer'")
    found = []
    for i, hop in enumerate(hops):
        path = f"new_single_hops[{i}]"
        if not isinstance(hop, Mapping):
            raise MalformedRecord(path, f"holds {kind(hop)}; it is an object with 'question' and 'answer'")
        question = optional_text(row, f"{path}.question", "one step of the chain as a question")
        cloze = optional_text(row, f"{path}.cloze", "one step of the chain as a statement to complete")
        prompt = cloze or question
        if prompt is None:
            raise MalformedRecord(f"{path}.question", "is missing; it is one step of the chain as a question")
        answer = as_text(hop.get("answer"), f"{path}.answer", "the answer that must survive")
        if edited.isdisjoint({question, cloze}):
            found.append(("unedited_hop", prompt, answer))
    return tuple(found)
