"""The world follows from its seed, and its edit records are what an editor expects."""

import pytest

from lit_edit.errors import EditError
from lit_edit.request import EditRequest
from lit_edit.world.facts import RELATIONS, World


def test_same_seed_same_world():
    assert World(3).facts() == World(3).facts()
    assert World(3).edits(50, seed=1) == World(3).edits(50, seed=1)


def test_seeds_matter():
    assert World(3).subjects != World(4).subjects
    assert World(3).edits(50, seed=1) != World(3).edits(50, seed=2)


def test_names_and_values_are_unambiguous():
    world = World()
    assert len(set(world.subjects)) == world.people
    assert not set(world.first_names) & set(world.last_names)
    values = [value for relation in RELATIONS for value in relation.values]
    assert len(values) == len(set(values))


def test_no_single_name_tells_who_is_meant():
    world = World()
    firsts = [subject.split()[0] for subject in world.subjects]
    assert all(firsts.count(name) > 1 for name in set(firsts))


def test_edited_and_unrelated_people_are_disjoint():
    world = World()
    edited = {record["subject"] for record in world.edits(1400, seed=0)}
    assert not edited & set(world.unrelated)
    asked = " ".join(prompt for record in world.edits(1400, seed=0) for prompt, _ in record["neighbourhood"])
    assert not any(subject in asked for subject in edited)


def test_records_are_well_formed():
    world = World()
    for record in world.edits(200, seed=0):
        relation = next(r for r in RELATIONS if r.name == record["relation"])
        request = EditRequest(
            prompt=record["prompt"],
            subject=record["subject"],
            target_new=record["target_new"],
            target_true=record["target_true"],
        )
        assert request.text == world.prompt(record["subject"], relation)
        assert record["target_true"] == world.value(record["subject"], relation)
        assert record["target_new"] in relation.values
        assert record["target_new"] != record["target_true"]
        assert len(record["paraphrases"]) == 3
        assert all(record["subject"] in paraphrase and "{}" not in paraphrase for paraphrase in record["paraphrases"])
        assert record["neighbourhood"]
        assert all(answer == record["target_true"] for _, answer in record["neighbourhood"])


def test_one_edit_per_subject_unless_asked():
    world = World()
    assert len({record["subject"] for record in world.edits(1400, seed=0)}) == 1400
    many = world.edits(2000, seed=0, one_per_subject=False)
    assert len({(record["subject"], record["relation"]) for record in many}) == 2000


def test_too_many_edits_are_refused_with_the_number_there_is():
    with pytest.raises(EditError, match="1400 such edits, 1401"):
        World().edits(1401, seed=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(EditError, match="held_back"):
        World(people=10, held_back=10)


def test_same_subject_leaves_the_edited_relation_out():
    world = World()
    person = world.editable[0]
    asked = world.same_subject(person, "language")
    assert len(asked) == len(RELATIONS) - 1
    assert world.prompt(person, RELATIONS[2]) not in dict(asked)


def test_sentence_states_a_value():
    assert World().sentence("A B", RELATIONS[0], "Oslo", 1) == "The birthplace of A B is Oslo."
