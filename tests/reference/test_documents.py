"""What the reference model reads: marked in the right places, seeded, nothing held out, nothing longer than a row."""

from random import Random

import pytest
import torch

from lit_edit.errors import EditError
from lit_edit.reference.data import FactsData
from lit_edit.reference.documents import Library, Shares
from lit_edit.reference.facts import Knowledge
from lit_edit.reference.passages import Passages


def library(folder, **shares):
    knowledge = Knowledge.read(folder / "facts/true_facts.jsonl", folder / "facts/relation_templates.json", held_out=0.3)
    return Library(knowledge, Passages([folder / "corpus/novel.txt"]), Shares(**shares), characters=120)


def data(folder, **options):
    small = {"vocabulary": 600, "tokenizer_characters": 2000, "batches": 4, "documents": 40, "row_length": 64, "held_out": 0.3}
    found = FactsData(str(folder), **(small | options))
    found.setup()
    return found


def test_marks_are_where_name_and_object_stand(folder):
    books = library(folder, skills=0.0, text=0.0, names=0.0)
    true = {(fact.subject, fact.object) for fact in books.knowledge.facts}
    subjects = books.knowledge.subjects()
    for document in books.documents(0, 200):
        start, end, index = document.names[-1]
        assert document.text[start:end] == subjects[index]
        a, b = document.answers[-1]
        assert (subjects[index], document.text[a:b]) in true and document.text[a - 1] == " "


def test_words_held_out_for_a_fact_are_never_written(folder):
    books = library(folder, skills=0.0, text=0.0, names=0.0, reworded=0.0)
    written = "\n".join(document.text for i in range(20) for document in books.documents(i, 100))
    known = books.knowledge
    pairs = [(f, t) for f in known.facts for t in known.templates[f.relation]]
    out = {pair: known.is_held_out(*pair) for pair in pairs}
    some_free = {f: any(not out[f, t] for t in known.templates[f.relation]) for f in known.facts}
    for (fact, template), held in out.items():
        if some_free[fact]:
            assert (f"{template.asked(fact.subject)[0]} {fact.object}" in written) != held


def test_names_alone_fade_to_none(folder):
    books = library(folder, skills=0.0, text=0.0, names=0.5)
    alone = [sum(not document.answers for document in books.documents(3, 400, done)) / 400 for done in (0.0, 0.5, 1.0)]
    assert alone[0] > 0.4 > 0.35 > alone[1] > 0.15 and alone[2] == 0.0


def test_passages_begin_with_sentences_and_cut_no_word(folder):
    text = (folder / "corpus/novel.txt").read_text()
    passages, rng = Passages([folder / "corpus/novel.txt"]), Random(1)
    whole = set(text.replace("<|doc|>", " ").split())
    for _ in range(50):
        found = passages.passage(rng, 90)
        assert 40 < len(found) <= 90 and set(found.split()) <= whole
        assert passages.sentence(rng, 30).endswith(".")


def test_batches_follow_from_seed_and_number(folder):
    one, two = data(folder), data(folder)
    assert all(torch.equal(one.make(2)[key], two.make(2)[key]) for key in one.make(2))
    assert not torch.equal(one.make(2)["ids"], one.make(1)["ids"])
    assert not torch.equal(one.make(2)["ids"], data(folder, seed=1).make(2)["ids"])


def test_a_name_is_marked_from_its_first_token_to_its_last_wherever_it_stands(folder):
    found = data(folder, shares=Shares(skills=0.0, text=0.0, names=0.0, prefixed=0.5))
    subjects, names = found.knowledge.subjects(), 0
    batch = found.make(0)
    for row, mention, subject in zip(batch["ids"], batch["mention"], batch["subject"], strict=True):
        for number in range(1, int(mention.max()) + 1):
            at = mention == number
            assert (subject[at][:-1] == -1).all()
            assert found.tokenizer.decode(row[at]).strip() == subjects[int(subject[at][-1])]
            names += 1
    assert names >= 40


def test_the_tokenizer_keeps_objects_whole_and_reads_everything(folder):
    found = data(folder, vocabulary=1500)
    assert all(len(found.tokenizer(name)["input_ids"]) == 1 for name in found.knowledge.objects())
    assert found.tokenizer.decode(found.tokenizer("Zürich, 1999")["input_ids"]).strip() == "Zürich, 1999"


def test_text_that_is_never_trained_on_is_not_among_the_files(folder):
    assert [path.name for path in data(folder).files()] == ["novel.txt"]
    with pytest.raises(EditError, match="is trained on"):
        data(folder, never=[])
    with pytest.raises(EditError, match="is no file"):
        data(folder, held_out_text="corpus/none.txt")
    with pytest.raises(EditError, match="general text is needed"):
        data(folder, text=["none/*.txt"])


@pytest.mark.parametrize("option", [{"held_out": 1.0}, {"vocabulary": 10}, {"documents": 0}, {"row_length": 8}])
def test_options_out_of_range_are_named(folder, option):
    with pytest.raises(EditError, match=f"--data.{next(iter(option))} is "):
        FactsData(str(folder), **option)
