"""The real edit sets, where they are at hand; they are no part of the project."""

import json
from collections import Counter

import pytest

from lit_edit.data import CounterFact, EasyEdit, EditStream, MQuAKE, QAEdit, ZsRE
from lit_edit.data.ingest import recognise
from lit_edit.data.source import rows

EMPTY: dict[str, int] = {}


def ready(path, **arguments):
    stream = EditStream(path=str(path), **arguments)
    stream.setup()
    return stream


def kinds(requests, field):
    return dict(Counter(item[0] for request in requests for item in getattr(request, field)))


@pytest.mark.parametrize(
    ("name", "reader", "count", "paraphrases", "neighbours", "portability", "locality", "generation"),
    [
        ("counterfact/counterfact_500.json", CounterFact, 500, 1000, 5000, EMPTY, EMPTY, 5000),
        ("counterfact/counterfact_easyedit_1919.json", EasyEdit, 1919, 1919, 1919, EMPTY, EMPTY, 0),
        ("zsre/zsre_mend_1000.json", ZsRE, 1000, 1000, 1000, EMPTY, EMPTY, 0),
        ("editsets/qaedit_1000.json", QAEdit, 1000, 1000, 5000, EMPTY, EMPTY, 0),
        (
            "editsets/knowedit_wikidata_839.json",
            EasyEdit,
            839,
            839,
            0,
            {"reasoning": 2082, "subject_aliasing": 2358, "logical_generalization": 405},
            {"relation_specificity": 5486, "forgetfulness": 468},
            0,
        ),
    ],
)
def test_every_record_of_a_real_edit_set_is_read(
    shared, name, reader, count, paraphrases, neighbours, portability, locality, generation
):
    path = shared / "data" / name
    assert type(recognise(rows(str(path)), str(path))[0]) is reader
    stream = ready(path)
    assert (len(stream.requests), len(stream.set_aside), stream.rows_read) == (count, 0, count)
    assert len({request.case_id for request in stream.requests}) == count
    assert sum(len(request.paraphrases) for request in stream.requests) == paraphrases
    assert sum(len(request.neighbourhood) for request in stream.requests) == neighbours
    assert sum(len(request.generation_prompts) for request in stream.requests) == generation
    assert kinds(stream.requests, "portability") == portability
    assert kinds(stream.requests, "locality") == locality
    records = json.loads(path.read_text(encoding="utf-8"))
    for request, record in zip(stream.requests, records, strict=True):
        rewrite = record.get("requested_rewrite", record)
        assert request.subject == rewrite["subject"].strip()
        prompt = rewrite.get("prompt") or rewrite.get("src")
        assert request.text == prompt.replace("{}", rewrite["subject"]).strip()
        assert request.generation_prompts == tuple(record.get("generation_prompts", ()))


def test_every_question_of_knowedit_keeps_its_prompt_and_its_answers(shared):
    path = shared / "data/editsets/knowedit_wikidata_839.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for request, record in zip(ready(path).requests, records, strict=True):
        asked = [item for items in record["portability"].values() for item in items]
        for (_, prompt, answers), item in zip(request.portability, asked, strict=True):
            assert prompt == item["prompt"].strip()
            assert answers[0] == item["ground_truth"][0][0].strip()
            assert set(answers) == {alias.strip() for group in item["ground_truth"] for alias in group}
            assert len(answers) == len(set(answers))
        kept = [item for items in record["locality"].values() for item in items]
        expected = [(item["prompt"].strip(), item["ground_truth"][0][0].strip()) for item in kept]
        assert [(prompt, answer) for _, prompt, answer in request.locality] == expected


def test_every_edit_of_a_multi_hop_case_is_read(shared):
    path = shared / "data/editsets/mquake_cf_354.json"
    assert type(recognise(rows(str(path)), str(path))[0]) is MQuAKE
    stream = ready(path)
    # 277 cases with one edit, 72 with two, 5 with three; three wordings of a question each; 1000 hops, 436 of them edited.
    assert (len(stream.requests), len(stream.set_aside), stream.rows_read) == (436, 0, 354)
    assert len({request.case_id for request in stream.requests}) == 436
    assert kinds(stream.requests, "portability") == {"multi_hop": 1062}
    assert kinds(stream.requests, "locality") == {"unedited_hop": 564}
    records = json.loads(path.read_text(encoding="utf-8"))
    left = iter(stream.requests)
    for number, record in enumerate(records, start=1):
        edits = record["requested_rewrite"]
        requests = [next(left) for _ in edits]
        assert {request.source for request in requests} == {f"{path}, row {number}"}
        assert [request.case_id for request in requests] == [f"{record['case_id']}-{i + 1}" for i in range(len(edits))]
        for request, edit in zip(requests, edits, strict=True):
            assert (request.prompt, request.subject) == (edit["prompt"], edit["subject"])
            assert (request.target_new, request.target_true) == (edit["target_new"]["str"], edit["target_true"]["str"])
            assert request.paraphrases == (edit["question"],)
        assert not any(request.portability or request.locality for request in requests[:-1])
        assert [prompt for _, prompt, _ in requests[-1].portability] == [question.strip() for question in record["questions"]]
        for _, _, answers in requests[-1].portability:
            assert answers[0] == record["new_answer"]
            assert set(answers) == {record["new_answer"], *(alias.strip() for alias in record["new_answer_alias"])}
        # Independently of how the reader tells them: the triples that the case itself says were not edited.
        untouched = len(record["orig"]["new_triples"]) - len(record["orig"]["edit_triples"])
        assert len(requests[-1].locality) == untouched


def test_a_limit_in_the_middle_of_a_multi_hop_case(shared):
    path = shared / "data/editsets/mquake_cf_354.json"
    whole = ready(path)
    cut = next(i for i, request in enumerate(whole.requests) if request.case_id.endswith("-1") and not request.portability)
    limited = ready(path, limit=cut + 1)
    assert limited.requests == whole.requests[: cut + 1]
    assert limited.rows_read == len({request.source for request in limited.requests})


def test_a_long_stream_in_json_lines(shared):
    stream = ready(shared / "data/counterfact/counterfact_reconstructed.jsonl", limit=3000, batch_size=100)
    assert stream.rows_read == len(stream.requests) == 3000
    assert len(stream.train_dataloader()) == 30
    assert stream.requests[0].case_id == "0"
    assert all(2 <= len(request.generation_prompts) <= 10 for request in stream.requests)


def test_a_real_file_cut_in_the_middle_keeps_every_record_before_the_cut(shared, tmp_path):
    text = (shared / "data/counterfact/counterfact_500.json").read_text(encoding="utf-8")
    cut = tmp_path / "cut.json"
    cut.write_text(text[: len(text) // 2], encoding="utf-8")
    stream = ready(cut)
    whole = [record["case_id"] for record in json.loads(text)]
    assert [int(request.case_id) for request in stream.requests] == whole[: len(stream.requests)]
    assert 200 < len(stream.requests) < 300
    assert [row.field for row in stream.set_aside] == ["*"]
    assert stream.rows_read == len(stream.requests) + 1


@pytest.mark.parametrize(
    ("name", "order", "recorded"),
    [
        ("counterfact/counterfact_500.json", "file", "1dccd92a23450665"),
        ("counterfact/counterfact_500.json", "shuffled", "a2edb77e92394d55"),
        ("zsre/zsre_mend_1000.json", "shuffled", "5fdf6063dfa70662"),
        ("editsets/knowedit_wikidata_839.json", "shuffled", "c1c6cf9bdcea27b3"),
        ("editsets/qaedit_1000.json", "file", "34e2dcd64d5057e2"),
    ],
)
def test_a_run_stopped_before_requests_held_more_than_the_fact_still_resumes(shared, name, order, recorded):
    state = ready(shared / "data" / name, order=order, seed=3, batch_size=7)
    loader = state.train_dataloader()
    loader.processed = lambda: len(loader)
    assert loader.state_dict()["fingerprint"].startswith(recorded)
