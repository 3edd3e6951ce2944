"""The request: what it accepts, what it refuses, and what a checkpoint remembers of it."""

import dataclasses
import pickle

import pytest

from lit_edit.data.loader import fingerprint
from lit_edit.errors import MalformedRecord
from lit_edit.request import EditRequest

FACT = EditRequest("{} was born in", "Ann", "Rome")
SCORED = dataclasses.replace(
    FACT,
    portability=(("reasoning", "The capital of Ann's country is", ("Rome", "Roma")), ("multi_hop", "Who?", ("Bo",))),
    locality=(("forgetfulness", "Ann's mother is", "Eve"),),
    generation_prompts=("Ann is known for", "Ann is known for"),
)


def refused(**fields):
    with pytest.raises(MalformedRecord) as caught:
        dataclasses.replace(FACT, **fields)
    return caught.value.field, caught.value.reason


def test_the_measures_are_optional_and_a_fact_without_them_is_the_same_as_ever():
    assert (FACT.portability, FACT.locality, FACT.generation_prompts) == ((), (), ())
    assert (FACT.text, FACT.name) == ("Ann was born in", "'Ann was born in'")


def test_a_request_with_everything_is_hashable_and_survives_pickling():
    assert len({SCORED, pickle.loads(pickle.dumps(SCORED)), FACT}) == 2


def test_lists_become_tuples_and_blanks_are_dropped_as_in_the_other_fields():
    loose = dataclasses.replace(
        FACT,
        portability=[[" reasoning", " Where to? ", [" Rome ", "Roma"]]],
        locality=[["forgetfulness ", "Ann's mother is ", " Eve "]],
        generation_prompts=["Ann is known for "],
    )
    # A prompt keeps the blanks in front of it and loses those behind it, where the answer follows after exactly one.
    assert loose.portability == (("reasoning", " Where to?", ("Rome", "Roma")),)
    assert loose.locality == (("forgetfulness", "Ann's mother is", "Eve"),)
    assert loose.generation_prompts == ("Ann is known for",)
    assert hash(loose)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"portability": "Where?"}, "portability", "holds 'Where?'; it is a tuple of items"),
        (
            {"portability": (("reasoning", "Where?"),)},
            "portability[0]",
            "holds ('reasoning', 'Where?'); it is a triple (kind, prompt, accepted answers)",
        ),
        ({"portability": (("a", "b", ("c",)), ("a", " ", ("c",)))}, "portability[1][1]", None),
        # A text in place of a tuple would be taken letter by letter.
        (
            {"portability": (("reasoning", "Where?", "Rome"),)},
            "portability[0][2]",
            "holds 'Rome'; it is a tuple of at least one accepted answer",
        ),
        (
            {"portability": (("reasoning", "Where?", ()),)},
            "portability[0][2]",
            "holds (); it is a tuple of at least one accepted answer",
        ),
        (
            {"portability": (("reasoning", "Where?", ("Rome", " ")),)},
            "portability[0][2][1]",
            "is empty; it is an accepted answer",
        ),
        (
            {"portability": (("reasoning", "Where?", (3,)),)},
            "portability[0][2][0]",
            "holds 3, not text; it is an accepted answer",
        ),
        ({"portability": (("", "Where?", ("Rome",)),)}, "portability[0][0]", "is empty; it is the kind of the item"),
        (
            {"portability": (("One/Hop", "Where?", ("Rome",)),)},
            "portability[0][0]",
            "holds 'One/Hop'; a kind is part of a metric's name and in snake case, as 'multi_hop'",
        ),
        ({"portability": (("Reasoning", "Where?", ("Rome",)),)}, "portability[0][0]", None),
        ({"locality": (("a", "b"),)}, "locality[0]", "holds ('a', 'b'); it is a triple (kind, prompt, answer)"),
        ({"locality": (("a", "b", ""),)}, "locality[0][2]", "is empty; it is the answer"),
        ({"locality": (("a", "b", ("c",)),)}, "locality[0][2]", "holds ('c',), not text; it is the answer"),
        ({"locality": (("a", None, "c"),)}, "locality[0][1]", "holds None, not text; it is the text that the answer follows"),
        ({"generation_prompts": "Ann is"}, "generation_prompts", "holds 'Ann is'; it is a tuple of items"),
        ({"generation_prompts": ("x", "")}, "generation_prompts[1]", "is empty; it is the text that the answer follows"),
        ({"target_new": " "}, "target_new", "is empty; it is the answer to write"),
        ({"subject": ""}, "subject", "is empty; it names the entity that the fact is about"),
        ({"prompt": "Ann was born in"}, "prompt", "needs exactly one '{}' for the subject, found 'Ann was born in'"),
    ],
)
def test_what_is_refused_is_told_by_field(fields, field, reason):
    found = refused(**fields)
    assert found[0] == field
    assert reason is None or found[1] == reason


def test_a_checkpoint_remembers_what_is_written_and_not_what_it_is_scored_on():
    water = EditRequest("Water boils at", "", "100 degrees")
    # Recorded when requests had none of the last three fields: a run stopped then still resumes.
    recorded = "2be80d55ee54e707bd4a833d1eff47fd5cbcf10f6721b746c33e829ddc19887c"
    assert fingerprint([FACT, water]) == recorded
    assert fingerprint([SCORED, dataclasses.replace(water, generation_prompts=("Steam is",))]) == recorded
    assert fingerprint([water, FACT]) != recorded
