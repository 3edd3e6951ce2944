"""Fine-tuning under a trainer: a stream is edited, and facts need no subject."""

import json

import pytest
import torch

from lit_edit.data import EditStream
from lit_edit.editors import MEMIT
from lit_edit.editors.finetune import FT, FTL, FTM
from tests.stream import editor, facts, stream, trainer
from tests.tiny import save_tiny


@pytest.mark.parametrize("made", [FT(steps=4), FTL(epsilon=1e-3, steps=4), FTM(steps=4)], ids=["FT", "FT-L", "FT-M"])
def test_a_stream_is_edited(made, tmp_path):
    save_tiny(tmp_path / "model", "llama")
    module = editor(str(tmp_path / "model"), tmp_path / "cache", editor=made, guards=[])
    trainer(tmp_path).fit(module, datamodule=stream(tmp_path, 4))
    assert module.edits == 4 and not module.editor.state_dict()
    for layer in module.layers:
        assert not torch.equal(module.master(layer), module.original(layer))
        assert torch.equal(module.anatomy.weight(layer), module.master(layer))


def told(tmp_path, made, drop):
    """A run over facts some of which name no subject: the module, its journal, and what it says afterwards."""
    save_tiny(tmp_path / "model", "llama")
    rows = facts(4)
    for row in rows[drop]:
        row["prompt"] = row["prompt"].replace("{}", row.pop("subject"))
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    module = editor(str(tmp_path / "model"), tmp_path / "cache", editor=made, guards=[])
    data = EditStream(path=str(path), batch_size=2)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    said = [answer for batch in run.predict(module, datamodule=data) for answer in batch]
    run.test(module, datamodule=data, verbose=False)
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    return module, data, journal, said


def test_facts_without_a_subject_are_written_scored_and_predicted(tmp_path):
    module, data, journal, said = told(tmp_path, FT(lr=1e-2, steps=15), slice(None))
    assert [request.subject for request in data.requests] == [""] * 4 and module.edits == 4
    assert not any(batch["set_aside"] for batch in journal)
    assert [answer["prompt"] for answer in said] == [request.text for request in data.requests]
    assert all(answer["said"] is not None for answer in said)
    scores = module.scorer.requests(data.requests)
    names = [f"{metric}/success/teacher_forced" for metric in ("efficacy", "paraphrase")]
    assert all(len(score.values[name]) == 1 for score in scores for name in names)


@pytest.mark.parametrize("drop", [slice(1, None, 2), slice(None)], ids=["some", "all"])
def test_an_editor_that_reads_at_the_subject_sets_facts_without_one_aside(tmp_path, drop):
    module, _, journal, _ = told(tmp_path, MEMIT(lam=10.0), drop)
    left = [row for batch in journal for row in batch["set_aside"]]
    lacking = [str(i) for i in range(4)[drop]]
    assert module.edits == 4 - len(lacking) and module.position == 4
    assert [case for batch in journal for case in batch["cases"]] == [str(i) for i in range(4) if str(i) not in lacking]
    assert [row["field"] for row in left] == ["subject"] * len(lacking)
    assert all("reads its keys at the subject's last token" in row["reason"] for row in left)
    assert not any(batch["rejected"] for batch in journal)
    for layer in module.layers:
        assert torch.equal(module.master(layer), module.original(layer)) == (len(lacking) == 4)
