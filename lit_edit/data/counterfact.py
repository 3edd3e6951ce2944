"""CounterFact as the ROME and MEMIT papers distribute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_edit.data.reader import Reader, identifier, lookup, optional_text, template, text, texts
from lit_edit.request import EditRequest


class CounterFact(Reader):
    """CounterFact in ROME's schema (Meng et al. 2022, https://arxiv.org/abs/2202.05262).

    Every neighbourhood prompt is about a subject for which ``target_true`` holds, so that is its answer. The
    ``generation_prompts`` are kept as they stand, with repetitions: the released code continues each of them once. The
    ``attribute_prompts`` of the schema are not part of a request. Targets may be objects with a ``str``, as in the
    original, or plain text, as in some copies on the hub.
    """

    schema: ClassVar[str] = "CounterFact (requested_rewrite with prompt, subject, target_new, target_true)"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """A row with an object ``requested_rewrite``; MQuAKE has a list of them there and is another schema."""
        return isinstance(row.get("requested_rewrite"), Mapping)

    def request(self, row: Mapping[str, Any], source: str, index: int) -> EditRequest:
        """Read one row; see :meth:`Reader.request`."""
        edit = rewrite(row, "requested_rewrite")
        neighbours = texts(row, "neighborhood_prompts", "a prompt whose answer must survive")
        meaning = "the answer that the unedited model gives"
        # Without it the neighbourhood prompts have no answer: then, and only then, it is indispensable.
        require = text if neighbours else optional_text
        true = require(row, target(row, "requested_rewrite", "target_true"), meaning)
        return EditRequest(
            **edit,
            target_true=true,
            paraphrases=texts(row, "paraphrase_prompts", "the same question in other words"),
            neighbourhood=tuple((prompt, true) for prompt in neighbours) if true else (),
            case_id=identifier(row, index),
            source=source,
            generation_prompts=texts(row, "generation_prompts", "a prompt to continue freely"),
        )


def rewrite(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Prompt, subject, new target and relation of the edit at a path, as arguments of ``EditRequest``.

    Raises:
        MalformedRecord: if one of the first three is missing, no text or empty, or the prompt does not hold the subject's
            place once.
    """
    subject = text(row, f"{path}.subject", "the entity that the fact is about")
    prompt = text(row, f"{path}.prompt", "the statement to complete, with '{}' for the subject")
    return {
        "prompt": template(prompt, subject, prompt_field=f"{path}.prompt", subject_field=f"{path}.subject"),
        "subject": subject,
        "target_new": text(row, target(row, path, "target_new"), "the answer to write"),
        "relation": optional_text(row, f"{path}.relation_id", "the relation's identifier"),
    }


def target(row: Mapping[str, Any], path: str, name: str) -> str:
    """Path of a target's text: inside an object with ``str``, or the field itself."""
    path = f"{path}.{name}"
    return path if isinstance(lookup(row, path), str) else f"{path}.str"
