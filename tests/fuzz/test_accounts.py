"""Rows in = edited + rejected + set aside: over whole runs of a tiny model, counted in what they leave behind."""

import json
import shutil
from collections import Counter

import pytest
from damage import written
from exploring import explore, sizes, told
from hypothesis import strategies as st
from stream import ANSWERS, NAMES, editor, trainer
from tiny import save_tiny

from lit_edit.callbacks import Report
from lit_edit.data import EditStream
from lit_edit.data.source import split_where
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.journal.cli import main as journal
from lit_edit.workbench import Rejected

REFUSED = "Sofia"


class Particular(MEMIT):
    """Rejects every batch that holds a certain answer."""

    def change(self, bench, rows, aimed):
        super().change(bench, rows, aimed)
        if any(row.request.target_new == REFUSED for row in rows):
            raise Rejected("on purpose")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accounts")
    save_tiny(folder / "model", "gpt2")
    return folder


@st.composite
def streams(draw):
    """Kinds of rows with their text: what becomes of some is known before."""
    found = []
    for index in range(draw(st.integers(3, 9))):
        kind = draw(
            st.sampled_from(
                ["good", "good", "again", "conflicting", "malformed", "no JSON", "too long", "no subject", "rejected"]
            )
        )
        row = {"prompt": "{} was born in", "subject": f"{NAMES[index % len(NAMES)]} {index}", "target": ANSWERS[index % 4]}
        row["neighbourhood"] = [["She is a native speaker of", "Dutch"]]
        if kind in ("again", "conflicting"):
            earlier = [other for what, other, _ in found if what == "good"]
            row = {
                **(earlier[-1] if earlier else row),
                **({"target": ANSWERS[(index + 1) % 4]} if kind == "conflicting" else {}),
            }
        elif kind == "malformed":
            row[draw(st.sampled_from(["prompt", "subject", "target"]))] = draw(
                st.sampled_from([None, "", 3, [], "\ud800", {"a": [["@deep:90"]]}])
            )
        elif kind == "too long":
            row[draw(st.sampled_from(["prompt", "target"]))] = "{} was" + " so very much" * 60
        elif kind == "no subject":
            row = {"prompt": "Rome is in", "subject": None, "target": "Italy"}
        elif kind == "rejected":
            row["target"] = REFUSED
        text = draw(st.sampled_from(["{", "[]", "nonsense", '{"prompt": "{} is"'])) if kind == "no JSON" else written(row)
        found.append((kind, row, text))
    return found, draw(st.integers(1, 4)), draw(st.sampled_from(["file", "shuffled"]))


@pytest.mark.filterwarnings("ignore:.* share a key but not an answer")
@sizes(3, 60)
def test_every_row_is_accounted_for(size, place, capsys):
    fates = Counter()

    def check(example):
        rows, batch_size, order = example
        run = place / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        (run / "facts.jsonl").write_text("".join(f"{text}\n" for _, _, text in rows))
        data = EditStream(path=str(run / "facts.jsonl"), batch_size=batch_size, order=order)
        module = editor(str(place / "model"), place / "cache", editor=Particular(lam=10.0), guards=[])
        fitted = trainer(run)
        try:
            fitted.fit(module, datamodule=data)
        except EditError as error:
            told(error, "facts.jsonl")
            assert all(kind in ("malformed", "no JSON") for kind, _, _ in rows)
            return
        next(callback for callback in fitted.callbacks if isinstance(callback, Report)).write(fitted, module)
        summary = json.loads((run / "summary.json").read_text())
        records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        file = run / "set_aside.jsonl"
        aside = [json.loads(line)["row"] for line in file.read_text().splitlines()] if file.exists() else []
        requests = [request for record in records for request in record["requests"]]
        became = {split_where(request["source"])[1]: request["fate"] for request in requests} | dict.fromkeys(
            aside, "unreadable"
        )
        assert len(became) == len(requests) + len(aside) == len(rows) and set(became) == set(range(1, len(rows) + 1))
        count = Counter(became.values())
        assert (
            count["written"] + count["rejected"] + count["set aside"] + count["unreadable"] == len(rows) == summary["rows_read"]
        )
        assert (summary["edits"], summary["requests"]) == (count["written"], len(requests)) and summary["finished"]
        assert summary["rows_set_aside"] == count["unreadable"]
        refused = {number for number, (kind, _, _) in enumerate(rows, start=1) if kind == "rejected"}
        assert all(became[number] == "rejected" for number in refused)
        for number, (kind, _, _) in enumerate(rows, start=1):
            known = {"malformed": "unreadable", "no JSON": "unreadable", "too long": "set aside", "no subject": "set aside"}
            assert became[number] == known[kind] if kind in known else became[number] in ("written", "rejected")
        capsys.readouterr()
        assert journal(["verify", str(run)]) == 0, capsys.readouterr().out
        fates.update(became.values())

    explore(size, streams(), check)
    assert size.count < 10 or len(fates) == 4, fates
