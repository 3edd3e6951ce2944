"""Facts that a program gives instead of a file."""

import pytest
from stream import editor, facts, trainer
from tiny import save_tiny

import lit_edit
from lit_edit.data import EditStream, Facts
from lit_edit.errors import EditError
from lit_edit.request import EditRequest


def test_they_are_read_as_lines_of_a_file_are(tmp_path):
    from stream import write_facts

    given, read = EditStream(source=Facts(facts(5))), EditStream(path=write_facts(tmp_path / "facts.jsonl", 5))
    for one in (given, read):
        one.setup()
    where = [request.source for request in given.requests]
    assert where == [f"fact {i}" for i in range(1, 6)]
    assert [vars(a) | {"source": ""} for a in given.requests] == [vars(b) | {"source": ""} for b in read.requests]
    assert given.summary() == "Facts(5): 5 rows read, 5 usable, 0 set aside; 5 edits in the stream."


def test_requests_stay_as_they_are_and_calls_agree():
    request = EditRequest("{} is in", "Rome", "Italy", case_id="r")
    found = Facts([request, {"prompt": "Ann is in", "subject": "Ann", "target": "Rome"}])
    assert found.requests()[0] is request and found.requests()[1].prompt == "{} is in"
    assert tuple(found.requests()) == tuple(found.requests())


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([{"prompt": "{} is in", "subject": "Ann", "target": "Rome"}, {"prompt": "{} is in", "subject": "Bob"}],
         "fact 2: field 'target': is missing; it is the answer to write"),
        (["Ann is in Rome"], "fact 1 is text; a fact is a dict with prompt, subject and target, or an EditRequest"),
        ([{"prompt": "{} is in", "subject": 3, "target": "Rome"}], "fact 1: field 'subject': holds a number"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_named(records, sentence):
    with pytest.raises(EditError) as caught:
        Facts(records)
    assert str(caught.value).startswith(sentence)


def test_no_facts_are_no_stream():
    with pytest.raises(EditError, match=r"Facts\(0\) gave no facts; a stream needs at least one"):
        EditStream(source=Facts([])).setup()


def test_they_are_edited(tmp_path):
    model = editor(str(save_tiny(tmp_path / "model", "gpt2")), tmp_path / "cache", guards=[])
    trainer(tmp_path / "run").fit(model, EditStream(source=lit_edit.Facts(facts(4)), batch_size=2))
    assert (model.edits, model.batches) == (4, 2)


def test_they_may_stand_in_a_configuration(tmp_path, monkeypatch):
    from lit_edit.cli import EditCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-edit"])
    source = '{"class_path": "lit_edit.data.Facts", "init_args": {"records": [{"prompt": "{} is in", "subject": "Ann", "target": "Rome"}]}}'
    settings = ["--config", "counterfact", "--data.path", "null", "--data.source", source, "--trainer.accelerator", "cpu"]
    cli = EditCLI(settings, run=False)
    assert [request.text for request in cli.datamodule.source.requests()] == ["Ann is in"]
