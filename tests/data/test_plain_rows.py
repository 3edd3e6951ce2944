"""Plain rows, with and without a subject; what is wrong is named by the field as the file spells it."""

import pytest
from schema_rows import malformed, plain, without

from lit_edit.data import JsonLines
from lit_edit.data.ingest import ingest
from lit_edit.request import EditRequest


def test_plain_rows_with_everything():
    row = plain(
        target_true="Oslo",
        paraphrases=["Ann's birthplace is"],
        neighbourhood=[["Bob was born in", "Bonn"]],
        case_id="a1",
        relation="P19",
    )
    assert JsonLines().request(row, "f.jsonl, row 3", 3) == EditRequest(
        prompt="{} was born in",
        subject="Ann",
        target_new="Rome",
        target_true="Oslo",
        paraphrases=("Ann's birthplace is",),
        neighbourhood=(("Bob was born in", "Bonn"),),
        case_id="a1",
        relation="P19",
        source="f.jsonl, row 3",
    )


def test_plain_rows_without_an_identifier_go_by_their_number():
    assert JsonLines().request(plain(), "f.jsonl, row 3", 3).case_id == "3"


def test_blanks_around_fields_are_dropped():
    request = JsonLines().request({"prompt": " Ann lives in ", "subject": " Ann", "target": " Rome "}, "s", 1)
    assert (request.prompt, request.subject, request.target_new) == ("{} lives in", "Ann", "Rome")


@pytest.mark.parametrize("row", [{}, {"subject": None}], ids=["absent", "null"])
def test_plain_rows_without_a_subject_have_a_complete_text_as_prompt(row):
    request = JsonLines().request({"prompt": "Water {boils} at ", "target": "100 degrees", **row}, "f.jsonl, row 2", 2)
    assert request == EditRequest("Water {boils} at", "", "100 degrees", case_id="2", source="f.jsonl, row 2")
    assert request.text == "Water {boils} at" and request.name == "case 2"


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (
            {"prompt": "Ann was born in", "subject": " ", "target": "Rome"},
            "subject",
            "is empty; it is the entity that the fact is about",
        ),
        ({"prompt": "Ann was born in", "subject": 3, "target": "Rome"}, "subject", None),
        ({"prompt": "{} and {} met", "target": "Rome"}, "subject", "is missing; it is the entity that the fact is about"),
        ({"prompt": "Ann was born in"}, "target", "is missing; it is the answer to write"),
        ({"target": "Rome"}, "prompt", "is missing; it is the statement to complete, with the subject or '{}' in it"),
        (
            {"prompt": " ", "target": "Rome"},
            "prompt",
            "is empty; it is the statement to complete, with the subject or '{}' in it",
        ),
    ],
)
def test_malformed_rows_without_a_subject(row, field, reason):
    error = malformed(JsonLines(), row)
    assert error.field == field
    assert reason is None or error.reason == reason


def test_a_file_without_subjects_is_recognised_as_plain():
    rows = enumerate(
        [{"prompt": "Water boils at", "target": "100 degrees"}, {"target": "x"}, {"prompt": "Ice is", "target": "cold"}], 1
    )
    found = ingest(rows, "facts.jsonl")
    assert [request.text for request in found.requests] == ["Water boils at", "Ice is"]
    assert [(row.source, row.field) for row in found.set_aside] == [("facts.jsonl, row 2", "prompt")]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (without(plain(), "subject"), "subject", "is missing; it is the entity that the fact is about"),
        (plain(subject=""), "subject", "is empty; it is the entity that the fact is about"),
        (plain(subject=None), "subject", "is missing; it is the entity that the fact is about"),
        (plain(target="  "), "target", "is empty; it is the answer to write"),
        (without(plain(), "target"), "target", "is missing; it is the answer to write"),
        (plain(target=1984), "target", "holds a number (1984), not text; it is the answer to write"),
        (plain(target=["Rome"]), "target", "holds a list (['Rome']), not text; it is the answer to write"),
        (
            without(plain(), "prompt"),
            "prompt",
            "is missing; it is the statement to complete, with the subject or '{}' in it",
        ),
        (plain(prompt="{} and {} met"), "prompt", "holds '{}' 2 times, '{} and {} met'; mark the subject exactly once"),
        (
            plain(prompt="Bob was born in"),
            "subject",
            "'Ann' does not occur in the prompt 'Bob was born in'; spell it as the prompt does",
        ),
        (
            plain(subject="An\ud83cn"),
            "subject",
            "holds half a character ('\\ud83c' at character 3); write the text as plain UTF-8",
        ),
        (plain(paraphrases=["x", ""]), "paraphrases[1]", "is empty; it is the same question in other words"),
        (plain(paraphrases=3), "paraphrases", "holds a number (3), not a list; it is the same question in other words"),
        (plain(neighbourhood=["x"]), "neighbourhood[0]", "holds 'x'; it is a pair [prompt, answer]"),
        (plain(neighbourhood="x"), "neighbourhood", "holds 'x'; it is a list of pairs [prompt, answer]"),
        (plain(neighbourhood=[["x", None]]), "neighbourhood[0][1]", None),
    ],
)
def test_malformed_plain_rows_are_told_by_field_and_reason(row, field, reason):
    error = malformed(JsonLines(), row)
    assert error.field == field
    assert reason is None or error.reason == reason
