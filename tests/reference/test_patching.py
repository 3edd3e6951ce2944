"""What is measured of a reference model, on models and answers whose truth is known."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from lit_edit.pretraining.measures import Questions, blocks, moved_by_patching, right_without
from lit_edit.reference.facts import Fact, Knowledge, Template
from lit_edit.reference.layers import measure_layers, pairs_of
from lit_edit.reference.recall import measure_recall
from lit_edit.reference.report import markdown

SUBJECTS = ("Ada Lovelace", "Marie Curie", "Sony", "The Eiffel Tower", "France")


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return tiny_model(request.param).eval()


def questions(between):
    return Questions.of(tiny_tokenizer(), [Template("", between).asked(subject) for subject in SUBJECTS])


def turned(asked):
    """The same questions, each in the place of another."""
    return Questions(
        {name: value.roll(1, 0) for name, value in asked.inputs.items()}, asked.subject.roll(1), asked.last.roll(1)
    )


@torch.no_grad()
def test_a_state_that_is_read_last_takes_the_answer_with_it(model):
    asked = questions("")
    assert moved_by_patching(model, [blocks(model)[-1]], asked, turned(asked), asked.said(model)) == 1.0


@torch.no_grad()
def test_a_state_that_is_read_no_more_takes_nothing_with_it(model):
    asked = questions(" was born in the city of")
    other = turned(asked)
    before = (other.said(model) == asked.said(model)).float().mean().item()
    assert moved_by_patching(model, [blocks(model)[-1]], asked, other, asked.said(model)) == before


@torch.no_grad()
def test_an_mlp_that_writes_nothing_is_not_missed_and_others_may_be(model):
    asked = questions("")
    said = asked.said(model)
    silent = blocks(model)[1].mlp
    assert moved_by_patching(model, [blocks(model)[0]], asked, asked, said) == 1.0
    for name, parameter in silent.named_parameters():
        if "c_proj" in name or "down_proj" in name:
            parameter.zero_()
    said = asked.said(model)
    assert right_without(model, silent, asked, said) == 1.0
    assert right_without(model, blocks(model)[2], asked, said) < 1.0, "without a whole block answers change"
    assert torch.equal(asked.said(model), said), "nothing stays behind"


def test_pairs_share_their_words_and_differ_in_their_objects():
    one, two = Template("", " lives in"), Template("The home of ", " is")
    known = [(Fact("P1", str(i), "Rome" if i % 3 else "Oslo", True), one if i % 2 else two) for i in range(30)]
    found = pairs_of(known, 100)
    assert len(found) == 100 and all(a[1] == b[1] and a[0].object != b[0].object for a, b in found)
    assert pairs_of([(Fact("P1", "a", "Rome", True), one), (Fact("P1", "b", "Rome", True), one)], 5) == []
    assert measure_layers(torch.nn.Linear(1, 1), None, []) is None


def test_the_smallest_window_that_does_nearly_as_much_as_any_is_chosen(model):
    model.train()
    known = [
        (Fact("P1", subject, obj, True), Template("", ""))
        for subject, obj in zip(SUBJECTS, ("Paris", "Rome") * 3, strict=False)
    ]
    found = measure_layers(model, tiny_tokenizer(), known, n=20)
    assert model.training, "modes stay as they were"
    assert len(found.windows) == 6 and found.mlp == [found.windows[f"{i}-{i}"] for i in range(3)]
    most = max(found.windows.values())
    enough = [tuple(map(int, span.split("-"))) for span, moved in found.windows.items() if moved >= 0.9 * most]
    assert len(found.chosen) == min(b - a for a, b in enough) + 1 and (found.chosen[0], found.chosen[-1]) in enough


def test_recall_counts_by_template_and_by_whether_the_words_were_held_out():
    said = Template("", " lives in"), Template("The home of ", " is")
    facts = tuple(Fact("P1", f"Ada {i}", "Rome" if i % 4 else "Oslo", True) for i in range(40))
    knowledge = Knowledge(facts, {"P1": said}, {"P1": ()}, held_out=0.3)
    scorer = SimpleNamespace(answers=lambda pairs: SimpleNamespace(correct=torch.tensor(["home" in p for p, _ in pairs])))
    found = measure_recall(scorer, knowledge, most=None)
    told = found.told()["relations"]["P1"]
    assert {prompt: share["value"] for prompt, share in told["templates"].items()} == {
        "{} lives in": 0.0,
        "The home of {} is": 1.0,
    }
    assert told["recall"]["value"] == 0.5 and told["guess"] == 0.75 and len(found.known) == 40
    held = sum(knowledge.is_held_out(fact, template) for fact in facts for template in said)
    assert found.unseen.asked == held and found.seen.asked == 80 - held
    assert measure_recall(scorer, knowledge, most=10).seen.asked < found.seen.asked


def test_a_report_without_text_and_without_known_facts_says_so():
    share = {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    recall = {"words_seen": share, "words_unseen": share, "relations": {}}
    rest = {
        "parameters": 10,
        "facts": 3,
        "subjects": 2,
        "perplexity": None,
        "skills": {},
        "layers": None,
        "top5_sigma_share": [],
    }
    table = markdown({"recall": recall, **rest})
    assert "none asked" in table and "knows too little" in table and "perplexity" not in table
