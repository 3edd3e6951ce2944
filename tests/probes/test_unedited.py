"""Facts of an edit set that nobody edits, as a probe."""

import json

import pytest

from lit_edit.data import EditStream
from lit_edit.errors import EditError
from lit_edit.probes import UneditedFacts


@pytest.fixture
def path(tmp_path):
    rows = [
        {"prompt": "{} lives in", "subject": "Ada", "target": "Rome", "target_true": "Paris"},
        {"prompt": "{} speaks", "subject": "Bela", "target": "Latin"},
        {"prompt": "The home of {} is", "subject": "Cyril", "target": "Rome", "target_true": "Oslo"},
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_true_answers_are_asked_and_records_without_one_left_out(path):
    asked = [("Ada lives in", "Paris"), ("The home of Cyril is", "Oslo")]
    assert list(UneditedFacts(path).items()) == asked
    assert list(UneditedFacts(path, items=1).items()) == asked[:1]
    assert UneditedFacts(path, items=None).name == "unrelated_facts"


def test_the_file_is_read_when_the_stream_is_set_up(path, tmp_path):
    missing = tmp_path / "none.jsonl"
    stream = EditStream(path=path, probes=[UneditedFacts(str(missing))])
    with pytest.raises(EditError, match=r"There is no file .*none\.jsonl"):
        stream.setup()


def test_nothing_to_ask_is_one_sentence(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps({"prompt": "{} speaks", "subject": "Bela", "target": "Latin"}) + "\n")
    with pytest.raises(EditError, match="has no record with target_true"):
        UneditedFacts(str(file)).items()
    with pytest.raises(EditError, match="items=0; at least one fact"):
        UneditedFacts(str(file), items=0)
