"""The subject's last token, as edits find it, against an independent way: decoding token after token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, note, off, ok
from lit_edit.doctor.tokens import decoded
from lit_edit.request import EditRequest

ANSWER = "Vienna, Austria"
"""What the rows end with; several tokens, so that wrong offsets do not leave it without any."""

PROMPTS = {
    "at the start": ("{} was born in", "Ada Lovelace", "{}"),
    "in the middle": ("The mother tongue of {} is", "Marie Curie", "{}"),
    "at the end": ("What is the capital of {}", "France", "{}"),
    "before a comma": ("{}, the largest city of", "St. John's", "{}"),
    "with 's behind": ("{}'s mother tongue is", "Lovelace", "{}"),
    "in quotes": ('The novel "{}" was written by', "War and Peace", "{}"),
    "with accents": ("{} lies in", "Zürich-Örlikon", "{}"),
    "in CJK": ("{}是首都。The city lies in", "東京", "{}"),
    "digits": ("{} was launched in", "Apollo 11", "{}"),
    "in a context": ("{} was born in", "Ada Lovelace", "Therefore, people say so. {}"),
}
"""Prompt, subject and context template by what is special about it."""


def subject(name: str, case: Case) -> Outcome:
    """Whether both ways find the same token.

    The independent way: the shortest beginning of the row that decodes to a text which begins with everything up to the end of
    the subject.
    """
    prompt, who, context = PROMPTS[name]
    rows = case.encoder.rows(EditRequest(prompt, who, ANSWER), (context,) if context != "{}" else ())
    row = rows.rewriting[-1]
    ids = list(row.ids[: row.labels[0][0] + 1])  # without the answer
    upto = context.replace("{}", prompt).split("{}")[0] + who
    beginnings = [decoded(case.tokenizer, ids[: at + 1]).lstrip() for at in range(len(ids))]
    found = next((at for at, text in enumerate(beginnings) if text.startswith(upto)), None)
    # Only what stands for whole characters can be shown; the parts of one are shown with what comes before them.
    shown = _marked(beginnings, row.subject)
    values = {"prompt": context.replace("{}", prompt), "subject": who, "index": row.subject, "tokens": len(ids)}
    if found is None:
        advice = "See 'round trip': the tokenizer does not keep this text, so where the subject ends cannot be checked."
        return note(f"{shown} (not checked)", advice, **values, decoded_index=None)
    if found != row.subject:
        advice = "Keys and targets would be read at the wrong token; convert the tokenizer anew from its original files."
        return off(f"{shown}, while decoding says {_marked(beginnings, found)}", advice, **values, decoded_index=found)
    return ok(shown, **values, decoded_index=found)


def _marked(beginnings: list[str], at: int) -> str:
    """The text of a row with the token at a position in brackets."""
    before = beginnings[at - 1] if at else ""
    before = before.rstrip("\ufffd")  # what stands for bytes that are no whole character yet
    whole = beginnings[-1]
    upto = beginnings[at]
    if not (upto.startswith(before) and whole.startswith(upto)):
        return f"token {at + 1} of {len(beginnings)} of {whole!r}"
    return f"{before}[{upto[len(before) :]}]{whole[len(upto) :]}"


def _check(name: str) -> Check:
    run: Callable[[Case], Outcome] = partial(subject, name)
    return Check(name, run, needs_anatomy=False, needs_encoder=True)


NAME = "subject"
CHECKS = tuple(_check(name) for name in PROMPTS)
