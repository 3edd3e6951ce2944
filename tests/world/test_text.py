"""Skills and text: seeded, held out where they say so, and marked in the right places."""

from random import Random

import pytest

from lit_edit.world.facts import World
from lit_edit.world.skills import CLOSED, SKILLS, held_out, training_item
from lit_edit.world.text import general_text, training_documents


@pytest.mark.parametrize("name", SKILLS)
def test_skills_are_seeded(name):
    assert held_out(name, 20, seed=1) == held_out(name, 20, seed=1)
    assert len(dict(held_out(name, 20))) == 20


@pytest.mark.parametrize("name", sorted(set(SKILLS) - CLOSED))
def test_training_never_sees_held_out_items(name):
    rng = Random(0)
    seen = {training_item(name, rng)[0] for _ in range(2000)}
    assert not seen & set(dict(held_out(name, 200)))


def test_closed_skills_are_asked_completely():
    assert len(held_out("arithmetic", 500)) == 100
    assert len(held_out("antonym", 500)) == 32


def test_general_text_is_seeded_and_holds_no_skill_prompts():
    world = World()
    documents = list(general_text(world, seed=0, n=300))
    assert documents == list(general_text(world, seed=0, n=300))
    assert documents != list(general_text(world, seed=1, n=300))
    signs = ("Review:", "The sum of", "some kind of", "Copy:", "The opposite of")
    assert not any(sign in document for document in documents for sign in signs)


def test_marks_of_documents_are_where_they_claim():
    world = World()
    for document in training_documents(world, Random(0), 300):
        for start, end, person in document.names:
            assert document.text[start:end] == world.subjects[person]
        for start, end in document.answers:
            assert document.text[start - 1] == " "
            assert document.text[end] in ".,"
