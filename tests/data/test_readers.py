"""One row in, one request out; what is wrong is named by the field as the file spells it."""

import pytest
from schema_rows import counterfact, easyedit, malformed, plain, qaedit, without, zsre

from lit_edit.data import CounterFact, EasyEdit, JsonLines, MQuAKE, QAEdit, ZsRE
from lit_edit.data.ingest import KNOWN
from lit_edit.data.reader import template
from lit_edit.request import EditRequest


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
