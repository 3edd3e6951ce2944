"""The stream's accounts, its loaders, and what it says about bad input."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from numbered import Facts, Probe, subjects

from lit_edit.data import EditStream, JsonLines, Reader, WorldFacts
from lit_edit.data.loader import spread
from lit_edit.errors import EditError
from lit_edit.request import EditBatch, EditRequest

GOOD = [{"prompt": "{} is in", "subject": f"S{i}", "target": f"T{i}"} for i in range(10)]
BAD_SUBJECT = {"prompt": "{} is in", "target": "Rome"}
EMPTY_TARGET = {"prompt": "{} is in", "subject": "Ann", "target": ""}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(records, name="facts.jsonl"):
        lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
        Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return name

    return write


def ready(**arguments):
    stream = EditStream(**arguments)
    stream.setup()
    return stream


def complaint(**arguments):
    with pytest.raises(EditError) as caught:
        ready(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_row_is_accounted_for(write):
    stream = ready(path=write([BAD_SUBJECT, *GOOD[:2], "{broken", EMPTY_TARGET, *GOOD[2:], [1]]))
    assert subjects(stream.requests) == [f"S{i}" for i in range(10)]
    assert [(row.source, row.field) for row in stream.set_aside] == [
        ("facts.jsonl, row 1", "subject"),
        ("facts.jsonl, row 4", "*"),
        ("facts.jsonl, row 5", "target"),
        ("facts.jsonl, row 14", "*"),
    ]
    assert stream.set_aside[0].row == BAD_SUBJECT
    assert stream.rows_read == len(stream.requests) + len(stream.set_aside) == 14
    assert stream.requests[0].source == "facts.jsonl, row 2"
    assert stream.summary() == (
        "facts.jsonl: 14 rows read, 10 usable, 4 set aside; 10 edits in the stream. The first row set aside: "
        "facts.jsonl, row 1: field 'subject' is missing; it is the entity that the fact is about."
    )


def test_set_aside_rows_are_written(write, tmp_path):
    half = {"prompt": "{} is in", "subject": "\ud83c", "target": "Rome"}
    stream = ready(path=write([*GOOD, "{broken", EMPTY_TARGET, half]))
    written = stream.write_set_aside(tmp_path / "run" / "logs")
    lines = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert written == tmp_path / "run" / "logs" / "set_aside.jsonl"
    assert lines[1] == {
        "file": "facts.jsonl",
        "row": 12,
        "field": "target",
        "reason": "is empty; it is the answer to write",
        "record": EMPTY_TARGET,
    }
    assert [(line["row"], line["field"]) for line in lines] == [(11, "*"), (12, "target"), (13, "subject")]
    assert lines[0]["record"] == "{broken"
    assert [path.name for path in written.parent.iterdir()] == ["set_aside.jsonl"]


def test_nothing_is_written_if_nothing_was_set_aside(write, tmp_path):
    assert ready(path=write(GOOD)).write_set_aside(tmp_path / "logs") is None
    assert not (tmp_path / "logs").exists()


def test_limit_counts_usable_rows_and_stops_reading(write):
    stream = ready(path=write([BAD_SUBJECT, *GOOD, EMPTY_TARGET]), limit=3)
    assert subjects(stream.requests) == ["S0", "S1", "S2"]
    assert (stream.rows_read, len(stream.set_aside)) == (4, 1)
    assert len(ready(path="facts.jsonl", limit=99).requests) == 10
    assert len(ready(source=Facts(10), limit=4).requests) == 4


def test_shuffled_order_is_fixed_by_its_seed_and_a_limit_is_a_prefix(write):
    path = write([*GOOD, BAD_SUBJECT])
    whole = subjects(ready(path=path, order="shuffled", seed=1).requests)
    assert sorted(whole) == sorted(subjects(ready(path=path).requests))
    assert whole != sorted(whole)
    assert whole == subjects(ready(path=path, order="shuffled", seed=1).requests)
    assert whole != subjects(ready(path=path, order="shuffled", seed=2).requests)
    limited = ready(path=path, order="shuffled", seed=1, limit=4)
    assert subjects(limited.requests) == whole[:4]
    assert (limited.rows_read, len(limited.set_aside)) == (11, 1)


def test_setup_reads_once(write):
    stream = ready(path=write(GOOD))
    before = stream.requests
    Path("facts.jsonl").unlink()
    stream.setup("validate")
    assert stream.requests is before


def test_a_reader_can_be_named_and_can_be_ones_own(write):
    class Pairs(Reader):
        schema = "pairs (q, a)"

        @classmethod
        def recognises(cls, row):
            return "q" in row

        def request(self, row, source, index):
            return EditRequest("{} is", row["q"], row["a"], source=source)

    path = write([{"q": "Ann", "a": "here"}, {"q": "", "a": "here"}])
    stream = ready(path=path, reader=Pairs())
    assert subjects(stream.requests) == ["Ann"]
    assert [row.field for row in stream.set_aside] == ["subject"]
    assert len(ready(path=write(GOOD), reader=JsonLines()).requests) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "The stream was given neither path nor source; name an edit set, as in path=facts.jsonl."),
        (
            {"path": "a.json", "source": WorldFacts(n=1)},
            "The stream was given the path a.json and the source "
            "WorldFacts(n=1, seed=0, world_seed=0, one_per_subject=True); set one of them to null.",
        ),
        ({"path": "a.json", "batch_size": 0}, "batch_size is 0; it is a number of items, at least 1."),
        ({"path": "a.json", "limit": -1}, "limit is -1; it is a number of items, at least 1."),
        ({"path": "a.json", "limit": 0}, "limit is 0; it is a number of items, at least 1."),
        ({"path": "a.json", "review": -1}, "review is -1; it is a number of items, at least 0."),
        ({"path": "a.json", "neighbours": -1}, "neighbours is -1; it is a number of items, at least 0."),
        ({"path": "a.json", "probe_batch_size": 0}, "probe_batch_size is 0; it is a number of items, at least 1."),
        ({"path": "a.json", "order": "random"}, "order is 'random'; it is 'file' or 'shuffled'."),
        (
            {"path": "no/facts.json"},
            "There is no file no/facts.json; give the path of a .json, .jsonl, .csv, .parquet file or a hub id owner/name.",
        ),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    assert complaint(**arguments) == message


def test_strict_stops_at_the_first_bad_row(write):
    assert complaint(path=write([*GOOD, EMPTY_TARGET]), strict=True) == (
        "facts.jsonl, row 11: field 'target' is empty; it is the answer to write. "
        "(Without strict, such rows are set aside and the stream goes on.)"
    )


def test_strict_stops_at_unreadable_rows_too(write):
    assert complaint(path=write([*GOOD, "{broken"]), strict=True).startswith(
        "facts.jsonl, row 11: the row is not one complete JSON record"
    )


def test_no_usable_row(write):
    assert complaint(path=write([BAD_SUBJECT, EMPTY_TARGET])) == (
        "facts.jsonl has no usable row, all 2 were set aside; the first of them: "
        "facts.jsonl, row 1: field 'subject' is missing; it is the entity that the fact is about."
    )
    assert complaint(path=write(["[1]", "2"])) == (
        "facts.jsonl has no usable row, all 2 were set aside; the first of them: "
        "facts.jsonl, row 1: the row is a list; a row is an object of named fields."
    )


def test_unknown_schema(write):
    message = complaint(path=write([{"question": "?", "answer": "!"}]))
    assert message.startswith(
        "facts.jsonl has rows of no known schema: the first has the fields question, answer; known are CounterFact ("
    )
    assert "plain (prompt, subject, target)" in message
    assert message.endswith("Rename the fields, or name a reader class of your own.")


def test_rows_before_the_first_recognised_one_are_kept_in_the_accounts(write):
    stream = ready(path=write(["{broken", {"note": "my facts"}, *GOOD]))
    assert [row.source for row in stream.set_aside] == ["facts.jsonl, row 1", "facts.jsonl, row 2"]
    assert len(stream.requests) == 10


@pytest.mark.parametrize(("neighbours", "asked"), [(None, ["A", "B", "C"]), (2, ["A", "B"]), (0, []), (7, ["A", "B", "C"])])
def test_fewer_neighbours_are_asked(write, neighbours, asked):
    rows = [{**row, "neighbourhood": [[f"{name} is in", "Rome"] for name in "ABC"]} for row in GOOD]
    whole, stream = ready(path=write(rows)), ready(path=write(rows), neighbours=neighbours)
    assert [[prompt[0] for prompt, _ in request.neighbourhood] for request in stream.requests] == [asked] * 10
    assert [replace(request, neighbourhood=()) for request in stream.requests] == [
        replace(request, neighbourhood=()) for request in whole.requests
    ]


def test_source_without_facts():
    assert complaint(source=Facts(0)).endswith("gave no facts; a stream needs at least one.")


def test_probe_without_items():
    stream = ready(source=Facts(1), probes=[Probe(0)])
    with pytest.raises(EditError, match="Probe 'counting' has no items; remove it or check where"):
        stream.val_dataloader()


def test_two_probes_of_one_name():
    with pytest.raises(EditError, match="probes has two named 'counting'"):
        EditStream(source=Facts(1), probes=[Probe(1), Probe(2)])


def test_batches_are_the_stream_in_order():
    stream = ready(source=Facts(10), batch_size=4)
    loader = stream.train_dataloader()
    assert len(loader) == 3
    batches = list(loader)
    assert all(isinstance(batch, EditBatch) for batch in batches)
    assert [(batch.start, len(batch)) for batch in batches] == [(0, 4), (4, 4), (8, 2)]
    assert tuple(request for batch in batches for request in batch.requests) == stream.requests
    assert list(loader) == batches


def test_evaluation_loaders():
    stream = ready(
        source=Facts(10), batch_size=4, probe_batch_size=3, scored_at_once=3, review=4, probes=[Probe(7), Probe(3, "other")]
    )
    edits, seven, three = stream.val_dataloader()
    assert list(seven) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert (len(seven), len(three)) == (3, 1)
    assert [subjects(batch.requests) for batch in edits] == [["S0", "S3", "S6"], ["S9"]]
    for edited, expected in [
        (0, []),
        (3, ["S0", "S1", "S2"]),
        (4, ["S0", "S1", "S2", "S3"]),
        (6, ["S0", "S1", "S3", "S5"]),
    ]:
        stream.edited = lambda edited=edited: edited
        assert [s for batch in edits for s in subjects(batch.requests)] == expected
    everything = [f"S{i}" for i in range(10)]
    assert [s for batch in stream.test_dataloader()[0] for s in subjects(batch.requests)] == everything
    assert [s for batch in stream.predict_dataloader() for s in subjects(batch.requests)] == everything


@pytest.mark.parametrize(("count", "most"), [(0, 5), (5, 5), (6, 5), (1000, 7), (3, 0), (3, 1), (10**6, 500)])
def test_spread_is_even_and_has_both_ends(count, most):
    positions = spread(count, most)
    assert len(positions) == len(set(positions)) == min(count, most)
    assert positions == sorted(positions)
    if len(positions) > 1:
        gaps = [b - a for a, b in pairwise(positions)]
        assert (positions[0], positions[-1]) == (0, count - 1)
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.filterwarnings("ignore")  # newer versions of jsonargparse have another name for instantiate_classes
def test_options_of_the_command_line(write):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EditStream, "data")
    options = ["--data.path", write(GOOD), "--data.limit", "3", "--data.batch_size", "2", "--data.order", "shuffled"]
    options = ["--data", "lit_edit.data.EditStream", *options, "--data.reader", "JsonLines"]
    stream = parser.instantiate_classes(parser.parse_args(options)).data
    stream.setup()
    assert (len(stream.requests), stream.batch_size, type(stream.reader)) == (3, 2, JsonLines)
    options = ["--data", "lit_edit.data.EditStream", "--data.source", "WorldFacts", "--data.source.n", "7"]
    stream = parser.instantiate_classes(parser.parse_args(options)).data
    stream.setup()
    assert len(stream.requests) == 7


def test_the_embedded_world():
    stream = ready(source=WorldFacts(n=20, seed=3), batch_size=8)
    assert len(stream.requests) == 20
    assert len(set(subjects(stream.requests))) == 20
    assert stream.requests == ready(source=WorldFacts(n=20, seed=3)).requests
    assert stream.requests != ready(source=WorldFacts(n=20, seed=4)).requests
    request = stream.requests[0]
    assert request.target_new != request.target_true
    assert request.subject in request.text
    assert request.paraphrases
    assert all(len(pair) == 2 for pair in request.neighbourhood)
    assert request.source == "world 0, edit 1"


def test_more_facts_than_the_embedded_world_holds():
    with pytest.raises(EditError, match="this world holds"):
        ready(source=WorldFacts(n=10**6))
