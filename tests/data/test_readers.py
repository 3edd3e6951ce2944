"""One row in, one request out; what is wrong is named by the field as the file spells it."""

import pytest

from lit_edit.data import CounterFact, EasyEdit, JsonLines, MQuAKE, QAEdit, ZsRE
from lit_edit.data.ingest import KNOWN, ingest
from lit_edit.data.reader import template
from lit_edit.errors import MalformedRecord
from lit_edit.request import EditRequest


def counterfact(**changes):
    rewrite = {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Asia", "id": "Q48"},
        "target_true": {"str": "Europe", "id": "Q46"},
        "subject": "Mount Foo",
    }
    rewrite.update(changes.pop("rewrite", {}))
    return {
        "case_id": 7,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Where is it? Mount Foo lies in"],
        "neighborhood_prompts": ["Mount Bar is in", "Mount Baz is in"],
        **changes,
    }


def easyedit(**changes):
    return {
        "case_id": 10,
        "prompt": "The capital of Foo is",
        "subject": "Foo",
        "target_new": "Bar",
        "ground_truth": "Baz",
        "rephrase_prompt": "Foo's capital is",
        "locality_prompt": "The capital of Qux is",
        "locality_ground_truth": "Quux",
        **changes,
    }


def zsre(**changes):
    return {
        "subject": "Foo",
        "src": "Who founded Foo?",
        "pred": "Nobody",
        "rephrase": "By whom was Foo founded?",
        "alt": "Somebody",
        "answers": ["Ann Bar", "Bar"],
        "loc": "nq question: who sang the song",
        "loc_ans": "Ella",
        "cond": "...",
        **changes,
    }


def qaedit(**changes):
    return {
        "id": 3,
        "prompt": "who founded Foo?",
        "subject": "Foo",
        "target": "Ann",
        "rephrase": "Foo's founder?",
        "locality": [{"loc": "who sang", "loc_ans": "Ella"}],
        **changes,
    }


def plain(**changes):
    return {"prompt": "{} was born in", "subject": "Ann", "target": "Rome", **changes}


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def malformed(reader, row):
    with pytest.raises(MalformedRecord) as caught:
        reader.request(row, "facts.json, row 4", 4)
    return caught.value


def test_counterfact():
    assert CounterFact().request(counterfact(), "cf.json, row 1", 1) == EditRequest(
        prompt="{} is located in",
        subject="Mount Foo",
        target_new="Asia",
        target_true="Europe",
        paraphrases=("Where is it? Mount Foo lies in",),
        neighbourhood=(("Mount Bar is in", "Europe"), ("Mount Baz is in", "Europe")),
        case_id="7",
        relation="P30",
        source="cf.json, row 1",
    )


def test_counterfact_with_plain_targets():
    request = CounterFact().request(counterfact(rewrite={"target_new": "Asia", "target_true": "Europe"}), "s", 1)
    assert (request.target_new, request.target_true) == ("Asia", "Europe")


def test_counterfact_needs_the_true_target_only_for_its_neighbours():
    row = counterfact(rewrite={"target_true": None})
    assert malformed(CounterFact(), row).field == "requested_rewrite.target_true.str"
    request = CounterFact().request({**row, "neighborhood_prompts": []}, "s", 1)
    assert (request.target_true, request.neighbourhood) == (None, ())


def test_easyedit():
    assert EasyEdit().request(easyedit(), "ee.json, row 1", 1) == EditRequest(
        prompt="The capital of {} is",
        subject="Foo",
        target_new="Bar",
        target_true="Baz",
        paraphrases=("Foo's capital is",),
        neighbourhood=(("The capital of Qux is", "Quux"),),
        case_id="10",
        source="ee.json, row 1",
    )


def test_easyedit_wants_an_answer_for_each_locality_prompt():
    error = malformed(EasyEdit(), easyedit(locality_ground_truth=None))
    assert (error.field, error.reason) == (
        "locality_ground_truth",
        "has 0 answers for the 1 prompts in locality_prompt; give one for each",
    )


def test_zsre_is_read_as_memit_reads_it():
    assert ZsRE().request(zsre(), "zsre.json, row 9", 9) == EditRequest(
        prompt="Who founded {}?",
        subject="Foo",
        target_new="Ann Bar",
        paraphrases=("By whom was Foo founded?",),
        neighbourhood=(("nq question: who sang the song?", "Ella"),),
        case_id="9",
        source="zsre.json, row 9",
    )


def test_zsre_question_that_names_the_subject_twice_is_edited_at_the_last_mention():
    request = ZsRE().request(zsre(src="In Foo, who founded Foo?"), "s", 1)
    assert request.prompt == "In Foo, who founded {}?"
    assert request.text == "In Foo, who founded Foo?"


def test_zsre_single_braces_are_ordinary_text():
    request = ZsRE().request(zsre(src="Who wrote {x: Foo}?"), "s", 1)
    assert (request.prompt, request.text) == ("Who wrote {x: {}}?", "Who wrote {x: Foo}?")


def test_zsre_braces_that_look_like_the_subject_are_set_aside_not_changed():
    error = malformed(ZsRE(), zsre(src="What does {} mean in Foo?"))
    assert error.field == "src"
    assert error.reason == (
        "holds the text '{}' besides the subject, 'What does {} mean in Foo?'; '{}' can only mark the subject"
    )


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (None, "is missing; it is a list of the right answers, the first of which is written"),
        ([], "holds []; it is a list of the right answers, the first of which is written"),
    ],
)
def test_zsre_without_answers(answers, reason):
    error = malformed(ZsRE(), zsre(answers=answers))
    assert (error.field, error.reason) == ("answers", reason)


def test_zsre_with_an_empty_answer():
    error = malformed(ZsRE(), zsre(answers=[" "]))
    assert (error.field, error.reason) == ("answers[0]", "is empty; it is the answer to write")


def test_qaedit():
    request = QAEdit().request(qaedit(), "s", 1)
    assert (request.prompt, request.target_new, request.case_id) == ("who founded {}?", "Ann", "3")
    assert QAEdit().request(qaedit(source="NQ"), "s", 1).case_id == "NQ-3"
    assert request.neighbourhood == (("who sang", "Ella"),)
    assert malformed(QAEdit(), qaedit(locality=["who sang"])).field == "locality"
    assert malformed(QAEdit(), qaedit(locality=[{"loc": "who sang"}])).field == "locality[0].loc_ans"


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


@pytest.mark.parametrize(
    ("reader", "row", "field"),
    [
        (CounterFact, counterfact(rewrite={"subject": ""}), "requested_rewrite.subject"),
        (CounterFact, counterfact(rewrite={"subject": "Elsewhere", "prompt": "It is in"}), "requested_rewrite.subject"),
        (CounterFact, counterfact(rewrite={"prompt": "{} {}"}), "requested_rewrite.prompt"),
        (CounterFact, counterfact(rewrite={"target_new": {"id": "Q1"}}), "requested_rewrite.target_new.str"),
        (CounterFact, counterfact(neighborhood_prompts=[1]), "neighborhood_prompts[0]"),
        (EasyEdit, without(easyedit(), "subject"), "subject"),
        (EasyEdit, easyedit(target_new=""), "target_new"),
        (EasyEdit, easyedit(subject="Elsewhere"), "subject"),
        (ZsRE, without(zsre(), "subject"), "subject"),
        (ZsRE, zsre(subject="Elsewhere"), "subject"),
        (ZsRE, zsre(loc_ans=None), "loc_ans"),
        (QAEdit, qaedit(target=""), "target"),
    ],
)
def test_malformed_rows_of_the_other_schemas_are_told_by_field(reader, row, field):
    assert malformed(reader(), row).field == field


@pytest.mark.parametrize(
    ("row", "reader"),
    [(counterfact(), CounterFact), (zsre(), ZsRE), (easyedit(), EasyEdit), (qaedit(), QAEdit), (plain(), JsonLines)],
)
def test_a_schema_is_recognised_even_if_any_one_field_is_missing(row, reader):
    essential = {"requested_rewrite", "src"}  # the one field by which the schema is known
    optional = {"rephrase", "locality"} if reader is QAEdit else set()
    if reader is EasyEdit:
        essential = {"prompt"}
    for name in set(row) - essential - optional:
        found = next(known for known in KNOWN if known.recognises(without(row, name)))
        assert found is reader, name


def test_a_list_of_rewrites_is_no_counterfact():
    row = {"requested_rewrite": [counterfact()["requested_rewrite"]], "questions": ["?"]}
    assert [known for known in KNOWN if known.recognises(row)] == [MQuAKE]


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("{} lives in", "Ann", "{} lives in"),
        ("Ann lives in", "Ann", "{} lives in"),
        ("Ann, or Ann B., lives in", "Ann", "Ann, or {} B., lives in"),
        ("Ann met Joanna; Annabel knows", "Ann", "{} met Joanna; Annabel knows"),  # whole words first
        ("C++ was designed by", "C++", "{} was designed by"),
        ("How tall is K.2?", "K.2", "How tall is {}?"),
        ("東京タワーは", "東京", "{}タワーは"),  # no word boundary in the script: the last occurrence as it is
    ],
)
def test_template(prompt, subject, expected):
    assert template(prompt, subject) == expected
