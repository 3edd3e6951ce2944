"""The real edit sets, where they are at hand; they are no part of the project."""

import json
from pathlib import Path

import pytest

from lit_edit.data import CounterFact, EasyEdit, EditStream, QAEdit, ZsRE
from lit_edit.data.ingest import recognise
from lit_edit.data.source import rows
from lit_edit.errors import EditError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the file {name} in ../shared/data, which is not part of the project")
    return str(path)


@pytest.mark.parametrize(
    ("name", "reader", "count", "paraphrases", "neighbours"),
    [
        ("counterfact/counterfact_500.json", CounterFact, 500, 2, 10),
        ("counterfact/counterfact_easyedit_1919.json", EasyEdit, 1919, 1, 1),
        ("zsre/zsre_mend_1000.json", ZsRE, 1000, 1, 1),
        ("editsets/qaedit_1000.json", QAEdit, 1000, 1, None),
        ("editsets/knowedit_wikidata_839.json", EasyEdit, 839, None, 0),
    ],
)
def test_every_record_of_a_real_edit_set_is_read(name, reader, count, paraphrases, neighbours):
    path = shared(name)
    assert type(recognise(rows(path), path)[0]) is reader
    stream = EditStream(path=path)
    stream.setup()
    assert (len(stream.requests), len(stream.set_aside), stream.rows_read) == (count, 0, count)
    assert len({request.case_id for request in stream.requests}) == count
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    for request, record in zip(stream.requests, records, strict=True):
        rewrite = record.get("requested_rewrite", record)
        assert request.subject == rewrite["subject"].strip()
        prompt = rewrite.get("prompt") or rewrite.get("src")
        assert request.text == prompt.replace("{}", rewrite["subject"]).strip()
        assert paraphrases is None or len(request.paraphrases) == paraphrases
        assert neighbours is None or len(request.neighbourhood) == neighbours


def test_a_long_stream_in_json_lines():
    path = shared("counterfact/counterfact_reconstructed.jsonl")
    stream = EditStream(path=path, limit=3000, batch_size=100)
    stream.setup()
    assert stream.rows_read == len(stream.requests) == 3000
    assert len(stream.train_dataloader()) == 30
    assert stream.requests[0].case_id == "0"


def test_a_real_file_cut_in_the_middle_keeps_every_record_before_the_cut(tmp_path):
    text = Path(shared("counterfact/counterfact_500.json")).read_text(encoding="utf-8")
    cut = tmp_path / "cut.json"
    cut.write_text(text[: len(text) // 2], encoding="utf-8")
    stream = EditStream(path=str(cut))
    stream.setup()
    whole = [record["case_id"] for record in json.loads(text)]
    assert [int(request.case_id) for request in stream.requests] == whole[: len(stream.requests)]
    assert 200 < len(stream.requests) < 300
    assert [row.field for row in stream.set_aside] == ["*"]
    assert stream.rows_read == len(stream.requests) + 1


def test_multi_hop_questions_are_another_schema():
    with pytest.raises(EditError, match="rows of no known schema"):
        EditStream(path=shared("editsets/mquake_cf_354.json")).setup()
