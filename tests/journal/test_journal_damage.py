"""Journals that were cut off, altered or made up: what is wrong is named, and nothing outside is touched."""

import errno
import json
import os
import random
from pathlib import Path

import lightning as L
import pytest
import torch
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.batch.outcome import BatchOutcome
from lit_edit.callbacks import JournalKeeper
from lit_edit.editors import FT, MEMIT, ROME, LyapLock
from lit_edit.errors import EditError
from lit_edit.guards import RECT, REVIVE
from lit_edit.journal import Journal, files
from lit_edit.journal.book import open_book
from lit_edit.journal.records import START, sealed
from lit_edit.request import EditBatch, EditRequest
from lit_edit.workbench import Rejected


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


def fit(model, folder, count=6, **options):
    folder.mkdir(exist_ok=True)
    module = editor(model, folder.parent / "cache", **options)
    trainer(folder, limit_val_batches=0).fit(module, datamodule=stream(folder, count))
    return module


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(model, folder)
    return folder


@pytest.fixture
def copied(run, tmp_path):
    (tmp_path / "run" / "journal").mkdir(parents=True)
    for path in [run / "journal.jsonl", *(run / "journal").iterdir()]:
        (tmp_path / "run" / path.relative_to(run)).write_bytes(path.read_bytes())
    return tmp_path / "run"


def wrong(folder):
    """What a reader says, whether it refuses the journal or goes through all of it."""
    try:
        return open_book(folder).problems()
    except EditError as error:
        return [str(error)]


def test_every_flipped_bit_is_noticed_and_its_place_named(copied):
    assert wrong(copied) == []
    draw = random.Random(0)
    for path in [copied / "journal.jsonl", *sorted((copied / "journal").iterdir())]:
        whole = path.read_bytes()
        for _ in range(120 if path.suffix == ".jsonl" else 40):
            at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            told = wrong(copied)
            assert told and path.name in told[0], (at, bit)
            if path.suffix == ".jsonl" and "record" in told[0]:
                record = whole.count(b"\n", 0, at)
                assert any(f"record {n}" in told[0] for n in (record, record + 1)), told
        path.write_bytes(whole)


def test_records_that_are_missing_swapped_or_made_up_are_noticed(copied):
    path = copied / "journal.jsonl"
    one, two, three = path.read_text().splitlines(keepends=True)
    for lines in ((two, three), (one, three), (two, one, three), (one, one, two, three)):
        path.write_text("".join(lines))
        assert "does not follow" in wrong(copied)[0]
    record = json.loads(one)
    record["requests"][0]["target"] = "Rome"
    path.write_text(json.dumps(record, sort_keys=True) + "\n" + two + three)
    assert "record 0 is not what was written" in wrong(copied)[0]


def resealed(folder, change, at=0):
    """Change a record and close the chain again, as somebody would who wants to be believed."""
    head, lines = START, []
    for number, line in enumerate((folder / "journal.jsonl").read_text().splitlines()):
        record = {key: value for key, value in json.loads(line).items() if key not in ("sha256", "before")}
        if number == at:
            change(record)
        line, head = sealed(record, head)
        lines.append(line)
    (folder / "journal.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["factors"].update(file="../../secret.safetensors"), "names another file"),
        (lambda r: r["factors"].update(file="/etc/passwd"), "names another file"),
        (lambda r: r["factors"].update(bytes=1), "bytes"),
        (lambda r: r.update(factors=3), "names another file"),
        (lambda r: r.update(requests=3), "no requests"),
        (lambda r: r["scalars"].update({"delta/norm/layer_0": "\ud800"}), "holds no number for 'delta/norm/layer_0'"),
        (lambda r: r.update(target_probability=[1]), "holds no number for 'target_probability'"),
        (lambda r: r["requests"][0].update(probability="\x1b[31m"), "whose loss or probability is no number"),
        (lambda r: r["requests"].append("x"), "a request without"),
        (lambda r: r["requests"][0].update(fate="lost"), "it was one of"),
        (lambda r: r["requests"][0].update(fate="set aside"), "does not add up"),
        (lambda r: r["requests"].pop(), "requests have been read by then"),
        (lambda r: r.update(position=7), "requests have been read by then"),
        (lambda r: r.update(edits="two"), "no edits"),
        (lambda r: r.update(format=1), "another version"),
        (lambda r: r.update(format=99), "another version"),
        (lambda r: r.pop("factors"), "does not say"),
        (lambda r: r.pop("rejected"), "does not say"),
    ],
)
def test_a_chain_that_was_closed_again_does_not_make_a_record_true(copied, change, told):
    resealed(copied, change)
    assert told in wrong(copied)[0]


def test_a_file_that_leads_out_of_the_run_is_not_read(copied, tmp_path):
    path = copied / "journal" / "batch-000001.safetensors"
    (tmp_path / "outside.safetensors").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "outside.safetensors")
    assert "leads out of the run folder" in wrong(copied)[0]
    path.unlink()
    assert "is missing, and record 1 needs it" in wrong(copied)[0]


@pytest.mark.parametrize("line", ["[" * 100_000 + "]" * 100_000, '{"a":' * 30 + "1" + "}" * 30, "3", '"x"', "\ud83d"])
def test_what_is_no_record_is_refused_in_a_sentence(copied, line):
    (copied / "journal.jsonl").write_text(line + "\n", encoding="utf-8", errors="surrogatepass")
    (told,) = wrong(copied)
    assert "line 1" in told or "plain ASCII" in told


def test_an_old_journal_is_refused_by_name(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"batch": 0, "start": 0, "position": 2, "edits": 2}\n')
    assert "another version (record 0 has format 1" in wrong(tmp_path)[0]
    with pytest.raises(EditError, match=r"no journal\.jsonl"):
        open_book(tmp_path / "nowhere")


def test_a_crash_between_file_and_record_leaves_nothing_behind(model, copied):
    """What a killed run leaves: a file without a record, a half-written file, half a record."""
    journal, before = copied / "journal.jsonl", (copied / "journal.jsonl").read_bytes()
    (copied / "journal" / "batch-000003.safetensors").write_bytes(b"from a batch that was never recorded")
    (copied / "journal" / ".batch-000003.safetensors.77-abcd1234").write_bytes(b"half")
    (copied / "journal" / "notes.txt").write_text("mine")
    journal.write_bytes(before + before.splitlines(keepends=True)[-1][:-30])
    found = Journal(journal)
    assert found.count == 3 and journal.read_bytes() == before
    found.truncate(2)
    assert {path.name for path in (copied / "journal").iterdir()} == {
        "batch-000000.safetensors",
        "batch-000001.safetensors",
        "notes.txt",
    }
    assert wrong(copied) == [] and len(open_book(copied).records) == 2
    with pytest.raises(EditError, match="holds 2 batches"):
        found.truncate(3)
    found.append(BatchOutcome(EditBatch((), 4)), 4, 4)
    assert wrong(copied) == [], "the chain goes on from the record that is the last now"


@pytest.mark.parametrize("where", ["file", "record"])
def test_a_batch_that_cannot_be_recorded_is_not_written(model, tmp_path, monkeypatch, where):
    """A full disk, at the factors and in the middle of the record: weights and journal are as before the batch."""

    class Full:
        def __init__(self, journal):
            self.journal = journal

        def __call__(self, *args, **kwargs):
            if self.journal.count == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.real(*args, **kwargs)

    class Filling(JournalKeeper):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            if stage == "fit":
                full = Full(pl_module.journal)
                target = (os, "fsync") if where == "record" else (os, "open")
                full.real = getattr(*target)
                monkeypatch.setattr(*target, full)

    module = editor(model, tmp_path / "cache")
    run = L.Trainer(default_root_dir=str(tmp_path / "run"), callbacks=[Filling(str(tmp_path / "run"))], max_epochs=1, accelerator="cpu",
                    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                    limit_val_batches=0, num_sanity_val_steps=0)  # fmt: skip
    (tmp_path / "run").mkdir()
    with pytest.raises(EditError, match="No space left on device"):
        run.fit(module, datamodule=stream(tmp_path / "run", 6))
    monkeypatch.undo()
    book = open_book(tmp_path / "run")
    assert len(book.records) == 1 and module.batches == 1
    assert files.hashes({layer: module.master(layer).detach() for layer in module.layers}) == book.records[0]["weights"]
    for layer in module.layers:
        assert torch.equal(module.anatomy.weight(layer), module.master(layer))


@pytest.mark.parametrize(
    ("method", "guards", "dense"),
    [
        (ROME, [REVIVE()], False),
        (lambda: LyapLock(lam=10.0), [], None),
        (lambda: FT(steps=2), [], True),
        (None, [RECT(defer=True)], True),
    ],
)
def test_every_kind_of_change_is_replayed_bit_for_bit(model, tmp_path, method, guards, dense):
    options = {
        "guards": guards,
        **({} if method is None else {"editor": method()}),
        **({"layers": [1]} if method is ROME else {}),
    }
    module = fit(model, tmp_path / "run", 4, **options)
    book = open_book(tmp_path / "run")
    assert book.problems() == [] and len(book.records) == 2 and book.records[-1]["edits"] == 4
    found = book.weights({layer: module.original(layer) for layer in module.layers}, 2)
    for layer, value in found.items():
        assert torch.equal(value.view(torch.int32), module.master(layer).detach().view(torch.int32))
    kinds = {name for n in (0, 1) for layer in files.read(book.run, n, book.records[n]["factors"]).values() for name in layer}
    assert dense is None or ("weight" in kinds) == dense


def test_a_rejected_batch_is_recorded_with_its_requests_and_changes_nothing(model, tmp_path):
    class Rejecting(MEMIT):
        batches = 0

        def change(self, bench, rows, aimed):
            super().change(bench, rows, aimed)
            type(self).batches += 1
            if self.batches == 2:
                raise Rejected("on purpose")

    module = fit(model, tmp_path / "run", 6, editor=Rejecting(lam=10.0, history=True))
    book = open_book(tmp_path / "run")
    assert book.problems() == []
    assert [[request["fate"] for request in r["requests"]] for r in book.records] == [
        ["written"] * 2,
        ["rejected"] * 2,
        ["written"] * 2,
    ]
    assert book.records[1]["factors"] is None and book.records[1]["weights"] == book.records[0]["weights"]
    found = book.weights({layer: module.original(layer) for layer in module.layers}, 3)
    assert all(torch.equal(value, module.master(layer)) for layer, value in found.items())


def test_a_base_that_is_not_what_was_folded_is_noticed(copied, run):
    book = open_book(copied)
    made = files.write_base(copied, 2, {0: torch.zeros(32, 128), 1: torch.zeros(32, 128)})
    assert "does not hold the weights that record 1" in open_book(copied).problems()[0]
    made.write_bytes(made.read_bytes()[:-1] + b"x")
    assert "is damaged" in open_book(copied).problems()[0]
    assert book.records == open_book(copied).records


def test_texts_of_any_kind_survive(tmp_path):
    request = EditRequest("{} \ud800 \x00 naïve", "東京\n", "\x1b[31m", case_id="7")
    Journal(tmp_path / "journal.jsonl").append(BatchOutcome(EditBatch((request,), 0), edited=(request,)), 1, 1)
    (record,) = open_book(tmp_path).records
    assert record["requests"][0]["prompt"] == request.prompt and record["requests"][0]["target"] == "\x1b[31m"
    assert Path(tmp_path / "journal.jsonl").read_bytes().isascii()
