"""Records that hold several edits: one request for each, the questions with the last, and accounts in rows and edits."""

import json
from pathlib import Path

import pytest

from lit_edit.data import EditStream, MQuAKE, Reader
from lit_edit.data.ingest import KNOWN, ingest
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.request import EditRequest


def edit(subject, prompt, new, true="Old"):
    return {
        "prompt": prompt,
        "subject": subject,
        "relation_id": "P1",
        "question": f"What about {subject}?",
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
    }


def hop(cloze, question, answer):
    return {"cloze": cloze, "question": question, "answer": answer, "answer_alias": []}


def record(case=12, **changes):
    """Ann plays for a team (edited), the team is in a town (edited), the town has a mayor (not edited)."""
    return {
        "case_id": case,
        "requested_rewrite": [edit("Ann", "{} plays for", "Reds"), edit("Reds", "{} are in", "Bonn")],
        "questions": ["Who is mayor where Ann plays? ", "Ann plays in a town with which mayor?"],
        "answer": "Joe",
        "answer_alias": ["J."],
        "new_answer": "Ida",
        "new_answer_alias": ["I.", "Ida"],
        "single_hops": [hop("Ann plays for", "What about Ann?", "Blues")],
        "new_single_hops": [
            hop("Ann plays for", "For whom does Ann play?", "Reds"),  # told by its statement
            hop("The Reds are located in", "What about Reds?", "Bonn"),  # told by its question
            hop("The mayor of Bonn is", "Who is mayor of Bonn?", "Ida"),
        ],
        **changes,
    }


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(records):
        Path("mq.json").write_text(json.dumps(records), encoding="utf-8")
        return "mq.json"

    return write


def ready(**arguments):
    stream = EditStream(**arguments)
    stream.setup()
    return stream


def cases(stream):
    return [request.case_id for request in stream.requests]


def malformed(row):
    with pytest.raises(MalformedRecord) as caught:
        MQuAKE().requests(row, "s", 1)
    return caught.value.field, caught.value.reason


def test_one_request_per_edit_and_the_questions_with_the_last():
    first, last = MQuAKE().requests(record(), "mq.json, row 3", 3)
    assert first == EditRequest(
        prompt="{} plays for",
        subject="Ann",
        target_new="Reds",
        target_true="Old",
        paraphrases=("What about Ann?",),
        case_id="12-1",
        relation="P1",
        source="mq.json, row 3",
    )
    assert last == EditRequest(
        prompt="{} are in",
        subject="Reds",
        target_new="Bonn",
        target_true="Old",
        paraphrases=("What about Reds?",),
        case_id="12-2",
        relation="P1",
        source="mq.json, row 3",
        portability=(
            ("multi_hop", "Who is mayor where Ann plays?", ("Ida", "I.")),
            ("multi_hop", "Ann plays in a town with which mayor?", ("Ida", "I.")),
        ),
        locality=(("unedited_hop", "The mayor of Bonn is", "Ida"),),
    )
    assert MQuAKE().request(record(), "mq.json, row 3", 3) == last


def test_a_record_with_little_in_it_is_used_for_what_it_has():
    rewrite = {"subject": "Ann", "prompt": "{} plays for", "target_new": "Reds"}
    (only,) = MQuAKE().requests({"requested_rewrite": [rewrite], "questions": None}, "s", 7)
    assert only == EditRequest("{} plays for", "Ann", "Reds", case_id="7-1", source="s")
    question_only = [{"question": "Who is mayor of Bonn?", "answer": "Ida"}]
    (only,) = MQuAKE().requests({"requested_rewrite": [rewrite], "new_single_hops": question_only}, "s", 7)
    assert only.locality == (("unedited_hop", "Who is mayor of Bonn?", "Ida"),)


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"requested_rewrite": []}, "requested_rewrite", "is an empty list; it is a list of at least one edit"),
        ({"requested_rewrite": None}, "requested_rewrite", "is missing; it is a list of at least one edit"),
        ({"requested_rewrite": "x"}, "requested_rewrite", "holds text; it is a list of at least one edit"),
        ({"requested_rewrite": ["x"]}, "requested_rewrite[0].subject", None),
        (
            {"requested_rewrite": [edit("Ann", "{} plays for", "Reds"), edit("Reds", "{} are in", " ")]},
            "requested_rewrite[1].target_new.str",
            "is empty; it is the answer to write",
        ),
        (
            {"requested_rewrite": [edit("Ann", "He plays for", "Reds")]},
            "requested_rewrite[0].subject",
            "'Ann' does not occur in the requested_rewrite[0].prompt 'He plays for'; spell it as the prompt does",
        ),
        ({"new_answer": ""}, "new_answer", "is empty; it is the answer to the questions after the edit"),
        ({"new_answer_alias": [3]}, "new_answer_alias[0]", None),
        ({"questions": ["", "x"]}, "questions[0]", "is empty; it is a question that needs the edited facts"),
        ({"new_single_hops": "x"}, "new_single_hops", "holds text; it is a list of objects with 'question' and 'answer'"),
        ({"new_single_hops": ["x"]}, "new_single_hops[0]", "holds text; it is an object with 'question' and 'answer'"),
        ({"new_single_hops": [{"answer": "x"}]}, "new_single_hops[0].question", None),
        ({"new_single_hops": [{"question": "x", "answer": ""}]}, "new_single_hops[0].answer", None),
    ],
)
def test_malformed_records_are_told_by_field(changes, field, reason):
    found = malformed(record(**changes))
    assert found[0] == field
    assert reason is None or found[1] == reason


@pytest.mark.parametrize("name", sorted(record()))
def test_the_schema_is_recognised_even_if_any_one_field_is_missing(name):
    row = {key: value for key, value in record().items() if key != name}
    assert next(known for known in KNOWN if known.recognises(row)) is MQuAKE
    needed = {
        "requested_rewrite": "is missing; it is a list of at least one edit",
        "new_answer": "is missing; it is the answer to the questions after the edit",
    }
    if name in needed:
        assert malformed(row) == (name, needed[name])
    else:
        assert len(MQuAKE().requests(row, "s", 1)) == 2


def test_a_single_rewrite_is_no_multi_hop_record_whatever_stands_beside_it():
    assert not MQuAKE.recognises(record(requested_rewrite=edit("Ann", "{} plays for", "Reds")))


def test_rows_and_edits_are_counted_apart(write):
    bad = record(2, requested_rewrite=[edit("Ann", "{} plays for", "Reds"), edit("", "{} are in", "Bonn")])
    stream = ready(path=write([record(1), bad, record(3, requested_rewrite=[edit("Bo", "{} likes", "tea")])]))
    assert cases(stream) == ["1-1", "1-2", "3-1"]
    assert (stream.rows_read, len(stream.set_aside)) == (3, 1)
    assert (stream.set_aside[0].source, stream.set_aside[0].field) == ("mq.json, row 2", "requested_rewrite[1].subject")
    assert stream.set_aside[0].row == bad
    assert stream.summary().startswith("mq.json: 3 rows read, 2 usable, 1 set aside; 3 edits in the stream. The first row")


def test_strict_stops_at_a_record_with_one_bad_edit(write):
    bad = record(2, requested_rewrite=[edit("Ann", "{} plays for", "Reds"), edit("Reds", "{} are in", "")])
    with pytest.raises(EditError) as caught:
        ready(path=write([record(1), bad]), strict=True)
    assert str(caught.value) == (
        "mq.json, row 2: field 'requested_rewrite[1].target_new.str' is empty; it is the answer to write. "
        "(Without strict, such rows are set aside and the stream goes on.)"
    )


def test_a_limit_counts_edits_and_a_record_it_cuts_loses_its_questions(write):
    path = write([record(i) for i in range(5)])
    for limit in range(1, 11):
        stream = ready(path=path, limit=limit)
        assert len(stream.requests) == limit
        assert stream.rows_read == -(-limit // 2)
        assert sum(bool(request.portability) for request in stream.requests) == limit // 2


def test_shuffling_keeps_the_edits_of_a_record_together_and_in_order(write):
    path = write([record(i) for i in range(20)])
    whole = cases(ready(path=path, order="shuffled", seed=1))
    assert sorted(whole) == sorted(cases(ready(path=path)))
    assert whole != cases(ready(path=path))
    assert [case.split("-")[1] for case in whole] == ["1", "2"] * 20
    assert all(first.split("-")[0] == last.split("-")[0] for first, last in zip(whole[::2], whole[1::2], strict=True))
    assert cases(ready(path=path, order="shuffled", seed=1, limit=7)) == whole[:7]


def test_a_reader_of_ones_own_may_give_several_edits_or_none():
    class Pairs(Reader):
        schema = "pairs"

        @classmethod
        def recognises(cls, row):
            return True

        def request(self, row, source, index):
            raise AssertionError("the stream calls requests")

        def requests(self, row, source, index):
            return [EditRequest("{} is", name, "here", source=source) for name in row["names"]]

    found = ingest(enumerate([{"names": ["a", "b"]}, {"names": []}, {"names": ["c"]}], 1), "f.jsonl", Pairs())
    assert [[request.subject for request in row] for row in found.records] == [["a", "b"], ["c"]]
    assert [request.subject for request in found.requests] == ["a", "b", "c"]
    assert found.rows_read == 3
    assert [(row.source, row.reason) for row in found.set_aside] == [
        ("f.jsonl, row 2", "holds no edit; a row is at least one fact to write")
    ]
