"""Facts and templates from files: what is read, what is left out, what is refused."""

import json

import pytest

from lit_edit.errors import EditError
from lit_edit.reference.facts import Fact, Knowledge, Template


def read(folder, **options):
    return Knowledge.read(folder / "facts/true_facts.jsonl", folder / "facts/relation_templates.json", **options)


def add(folder, **row):
    with (folder / "facts/true_facts.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_relations_without_a_template_of_counterfact_are_left_out(folder):
    add(folder, relation_id="P3", subject="Spain", object="France", counterfact_case_ids=[7])
    found = read(folder)
    assert sorted(found.templates) == ["P1", "P2"] and len(found.facts) == 40
    assert len(found.subjects()) == 20 and set(found.objects()) == {"Paris", "London", "Rome", "French", "Latin"}


def test_one_object_for_each_subject_and_relation_and_an_edited_one_first(folder):
    add(folder, relation_id="P1", subject="Zoe Bell", object="Oslo", counterfact_case_ids=[])
    add(folder, relation_id="P1", subject="Zoe Bell", object="Rome", counterfact_case_ids=[3])
    add(folder, relation_id="P1", subject="Zoe Bell", object="Paris", counterfact_case_ids=[4])
    assert [fact for fact in read(folder, edited=False).facts if fact.subject == "Zoe Bell"] == [
        Fact("P1", "Zoe Bell", "Rome", True)
    ]


def test_facts_without_an_edit_are_learned_only_if_wanted(folder):
    add(folder, relation_id="P2", subject="Zoe Bell", object="Latin")
    assert [len(read(folder, edited=edited).facts) for edited in (True, False)] == [40, 41]


def test_patterns_name_the_subject_first_and_the_object_as_a_word(folder):
    patterns = read(folder).patterns["P1"]
    assert patterns == (Template("", " is at home in"), Template("", ", a", "-born person."))
    assert patterns[1].asked("Ada Stone") == ("Ada Stone, a", 9)


def test_held_out_words_are_a_share_of_the_pairs_decided_by_their_text(folder):
    found = read(folder, held_out=0.3)
    pairs = [(fact, template) for fact in found.facts for template in found.templates[fact.relation]]
    out = [pair for pair in pairs if found.is_held_out(*pair)]
    assert 0.15 < len(out) / len(pairs) < 0.45
    assert out == [pair for pair in pairs if read(folder, held_out=0.3, relations=["P1", "P2"]).is_held_out(*pair)]
    assert not any(read(folder, held_out=0.0).is_held_out(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("true_facts.jsonl", '{"relation_id": "P1", "subject": "Ada"}', "line 1 is no JSON object with relation_id"),
        ("true_facts.jsonl", '{"relation_id": "P1", "subject": "Ada", "object": 3}', "line 1: relation_id, subject and object"),
        ("true_facts.jsonl", "", "has no fact to learn"),
        ("relation_templates.json", '{"P1": {"counterfact_templates": {"it lives in": 1}}}', "must hold {} once"),
        ("relation_templates.json", '{"P1": 3}', "is no JSON object of relations"),
    ],
)
def test_what_cannot_be_used_is_named(folder, file, content, sentence):
    (folder / "facts" / file).write_text(content)
    with pytest.raises(EditError, match=sentence.replace("{}", r"\{\}")):
        read(folder)


def test_unknown_relations_and_missing_files_are_named(folder):
    with pytest.raises(EditError, match=r"no template of .*P9.*it has those of P1, P2"):
        read(folder, relations=["P1", "P9"])
    (folder / "facts/true_facts.jsonl").unlink()
    with pytest.raises(EditError, match=r"true_facts\.jsonl cannot be read"):
        read(folder)
