"""The journal after a crash."""

import json

import pytest

from lit_edit.errors import EditError
from lit_edit.journal import Journal
from lit_edit.module import BatchOutcome
from lit_edit.request import EditBatch


def test_a_line_cut_by_a_crash_is_not_continued(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for at in (0, 2):
        journal.append(BatchOutcome(EditBatch((), at)), at, at)
    path.write_text(path.read_text()[:-20])
    journal = Journal(path)
    assert journal.count == 1
    journal.append(BatchOutcome(EditBatch((), 2)), 2, 2)
    assert [json.loads(line)["start"] for line in path.read_text().splitlines()] == [0, 2]
    assert [record["batch"] for record in journal.records()] == [0, 1]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"batch": 0}\n{"bat\n{"batch": 2}\n')
    with pytest.raises(EditError, match="line 2"):
        Journal(path)
