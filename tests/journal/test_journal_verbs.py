"""The journal's verbs over runs of the command line: what they show, replay, take back and fold."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stream import write_facts
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.journal import files
from lit_edit.journal.book import open_book
from lit_edit.journal.model import checkpoints
from lit_edit.options.arguments import ids
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

# The runs below are copies of one: Lightning says that their folder has changed.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

SMALL = [
    *("--model.targets.steps", "3", "--model.targets.contexts", "2", "--model.targets.context_tokens", "4"),
    *("--model.moment_tokens", "400", "--model.layers", "[0,1]", "--model.editor", "MEMIT", "--model.editor.history", "true"),
    *("--model.editor.lam", "100", "--data.batch_size", "2", "--baseline", "false", "--final", "false"),
    *("--trainer.accelerator", "cpu", "--trainer.val_check_interval", "100", "--trainer.enable_progress_bar", "false"),
    *("--drift.every_n_batches", "0", "--checkpoint.every_n_train_steps", "2", "--checkpoint.save_top_k", "-1"),
]


def fit(run, *options):
    assert main(["fit", "--model.pretrained", "model", "--data.path", "facts.jsonl", "--run_dir", run, *SMALL, *options]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, facts and a run of five batches: a checkpoint behind 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("journal")
    save_tiny(folder / "model", "gpt2")
    write_facts(folder / "facts.jsonl", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lit-edit"])
        fit("run")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    return tmp_path / "at"


def journal(*arguments):
    return main(["journal", *arguments])


def masters(path):
    state = SafetensorsCheckpointIO().load_checkpoint(path)
    return {name: value for name, value in state["state_dict"].items()}, state


def records(run):
    return [json.loads(line) for line in Path(run, "journal.jsonl").read_text().splitlines()]


def test_records_say_what_was_written_and_what_it_took(place):
    (first, *_), book = records("run"), open_book("run")
    assert len(book.records) == 5 and not book.problems()
    request = first["requests"][0]
    assert request["id"] == "0" and request["prompt"] == "{} was born in" and request["subject"] == "Ada Lovelace"
    assert request["target"] == "Paris" and request["fate"] == "written" and 0 < request["probability"] < 1
    assert first["factors"]["file"] == "journal/batch-000000.safetensors" and set(first["weights"]) == {"0", "1"}
    assert first["target_probability"] == pytest.approx(sum(r["probability"] for r in first["requests"]) / 2, rel=1e-6)


def test_show_and_verify(place, capsys):
    assert journal("show", "run") == 0
    shown = capsys.readouterr().out
    assert "norm 0" in shown and len(shown.splitlines()) == 6
    assert journal("show", "run", "--batch", "1") == 0
    assert "The Eiffel Tower was born in" in capsys.readouterr().out
    assert journal("verify", "run") == 0
    assert "5 records in one chain; 10 requests in: 10 written, 0 rejected, 0 set aside" in capsys.readouterr().out
    assert journal("show", "run", "--batch", "5") == 2


def test_a_replay_has_the_bits_of_every_checkpoint(place):
    kept, damaged = checkpoints(Path("run"))
    assert {one.batches for one in kept} == {2, 4, 5} and not damaged
    for one in kept:
        target = f"masters-{one.path.stem}.safetensors"
        assert journal("replay", "run", "--to", target, "--upto", str(one.batches)) == 0
        found = load_file(target)
        for layer, value in one.masters.items():
            assert torch.equal(found[f"masters.layer_{layer}"].view(torch.int32), value.view(torch.int32))
    assert journal("replay", "run", "--to", "whole") == 0
    loaded = Anatomy.of(AutoModelForCausalLM.from_pretrained("whole"))
    for layer, value in kept[-1].masters.items():
        assert torch.equal(loaded.weight(int(layer)), value)
    assert journal("replay", "run", "--to", "whole") == 2, "what is there stays"


def test_a_rollback_to_a_checkpoint_goes_on_as_if_nothing_had_been(place, capsys):
    whole, _ = masters("run/checkpoints/last.ckpt")
    before = Path("run/journal.jsonl").read_text().splitlines()
    assert journal("rollback", "run", "--to", "2") == 0
    assert Path("run/journal.jsonl").read_text().splitlines() == before[:2]
    assert {path.name for path in Path("run/journal").iterdir()} == {"batch-000000.safetensors", "batch-000001.safetensors"}
    assert masters("run/checkpoints/last.ckpt")[1]["lit_edit"]["batches"] == 2
    assert journal("verify", "run") == 0
    fit("run", "--ckpt_path", "last")
    again, _ = masters("run/checkpoints/last.ckpt")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert [line["weights"] for line in map(json.loads, before)] == [line["weights"] for line in records("run")]


def test_a_rollback_between_checkpoints_runs_batches_again(place, capsys):
    before, config = records("run"), Path("run/config.yaml").read_text()
    assert journal("rollback", "run", "--to", "3") == 2
    told = capsys.readouterr().err
    assert "behind 2 batches" in told and "1 batches would be run again" in told and "--yes" in told
    assert records("run") == before
    assert journal("rollback", "run", "--to", "3", "--yes") == 0
    assert [r["weights"] for r in records("run")] == [r["weights"] for r in before[:3]]
    state = masters("run/checkpoints/last.ckpt")[1]
    assert state["lit_edit"]["batches"] == 3 and Path("run/config.yaml").read_text() == config
    assert journal("verify", "run") == 0


@pytest.mark.parametrize(("drop", "start"), [("5", 2), ("1", 0)])
def test_a_dropped_request_leaves_a_run_that_never_had_it(place, drop, start, capsys):
    assert journal("rollback", "run", "--drop", drop) == 2
    assert f"{5 - start} batches would be run again" in capsys.readouterr().err
    assert journal("rollback", "run", "--drop", drop, "--yes") == 0
    lines = Path("facts.jsonl").read_text().splitlines(keepends=True)
    Path("facts.jsonl").write_text("".join(line for line in lines if json.loads(line)["case_id"] != drop))
    fit("never")
    ours, theirs = masters("run/checkpoints/last.ckpt")[0], masters("never/checkpoints/last.ckpt")[0]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [r["cases"] for r in records("run")] == [r["cases"] for r in records("never")]
    assert [r["weights"] for r in records("run")] == [r["weights"] for r in records("never")]
    assert journal("verify", "run") == 0


def test_a_request_that_was_never_written_cannot_be_dropped(place, capsys):
    before = Path("run/journal.jsonl").read_bytes()
    assert journal("rollback", "run", "--drop", "5", "--drop", "nobody", "--yes") == 2
    assert "holds no written request 'nobody', so there is nothing to take out" in capsys.readouterr().err
    assert Path("run/journal.jsonl").read_bytes() == before


def test_a_rollback_removes_nothing_outside_of_the_run(place, capsys):
    shutil.move("run/checkpoints", "elsewhere")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    Path("run/config.yaml").write_text(yaml.safe_dump({**config, "checkpoint": {"dirpath": str(place / "elsewhere")}}))
    before = Path("run/journal.jsonl").read_bytes(), sorted(Path("elsewhere").iterdir())
    assert journal("rollback", "run", "--to", "2", "--yes") == 2
    assert "elsewhere, outside of the run; nothing there is removed" in capsys.readouterr().err
    assert (Path("run/journal.jsonl").read_bytes(), sorted(Path("elsewhere").iterdir())) == before


def test_requests_left_out_are_those_of_the_stream(place, capsys):
    options = ["--model.pretrained", "model", "--data.path", "facts.jsonl", "--run_dir", "less", *SMALL]
    assert main(["fit", *options, "--journal.without", '["5", nobody]']) == 2
    assert "--journal.without names 'nobody', but the stream holds no request of that id" in capsys.readouterr().err
    assert not Path("less/journal.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[5]", ["5"]),
        ("5", ["5"]),
        ('["5"]', ["5"]),
        ("[5, 007, 1e3, yes, null, a b]", ["5", "007", "1e3", "yes", "null", "a b"]),  # as they are written
        ("a: b", ["a: b"]),
        ("[5", ["[5"]),
        ("[]", []),
        ([5, "007", -1], ["5", "007", "-1"]),  # what YAML makes of a file
        (5, ["5"]),
    ],
)
def test_ids_need_no_quotes(given, wanted):
    assert ids(given) == wanted == ids(ids(given))


@pytest.mark.parametrize("given", [None, 1.5, [True], [[5]], {"a": 1}, "[{a: 1}]"])
def test_what_is_no_id_is_said(given):
    with pytest.raises(EditError, match="is no id of a request"):
        ids(given)


def test_numbers_are_left_out_as_they_are_written(place):
    options = ["--model.pretrained", "model", "--data.path", "facts.jsonl", *SMALL]
    first = records("run")[0]["cases"][0]
    assert first.isdigit()
    Path("less.yaml").write_text(f"journal: {{without: [{first}]}}\n")
    for run, how in (("words", ["--journal.without", f"[{first}]"]), ("file", ["--config", "less.yaml"])):
        assert main(["fit", *how, *options, "--run_dir", run]) == 0
        assert yaml.safe_load(Path(run, "config.yaml").read_text())["journal"]["without"] == [first]
        assert first not in [case for record in records(run) for case in record["cases"]]


def test_compaction_keeps_the_chain_and_the_bits(place, capsys):
    assert journal("compact", "run", "--before", "3") == 0
    assert sorted(path.name[:11] for path in Path("run/journal").iterdir()) == ["base-000003", "batch-00000", "batch-00000"]
    assert journal("verify", "run") == 0
    (base,) = Path("run/journal").glob("base-*")
    for upto in ("3", "5"):
        assert journal("replay", "run", "--to", f"{upto}.safetensors", "--upto", upto) == 0
    last = masters("run/checkpoints/last.ckpt")[0]
    assert all(torch.equal(value, last[name]) for name, value in load_file("5.safetensors").items())
    assert journal("replay", "run", "--to", "2.safetensors", "--upto", "2") == 2
    assert journal("compact", "run", "--before", "2") == 2
    assert journal("rollback", "run", "--to", "2") == 0, "a checkpoint is enough"
    assert files.base(Path("run"))[0] == 2 and not base.exists(), "what was folded too far is folded anew"
    assert journal("verify", "run") == 0
    assert journal("replay", "run", "--to", "again.safetensors") == 0
    fit("run", "--ckpt_path", "last")
    assert journal("replay", "run", "--to", "end.safetensors") == 0
    assert all(torch.equal(value, last[name]) for name, value in load_file("end.safetensors").items())


def test_a_run_without_factors_is_verified_but_not_replayed(place, capsys):
    fit("bare", "--journal.factors", "false")
    assert not Path("bare/journal").exists()
    assert journal("verify", "bare") == 0
    assert journal("replay", "bare", "--to", "x.safetensors") == 2
    assert "no factors of batch 0 (--journal.factors false)" in capsys.readouterr().err


def test_clipped_gradients_are_recorded_as_they_were_applied(place):
    fit("clipped", "--trainer.gradient_clip_val", "0.5")
    assert records("clipped")[0]["scalars"]["delta/norm/layer_0"] > 0.5
    assert journal("verify", "clipped") == 0
    assert journal("replay", "clipped", "--to", "x.safetensors") == 0
    last = masters("clipped/checkpoints/last.ckpt")[0]
    assert all(torch.equal(value, last[name]) for name, value in load_file("x.safetensors").items())


def test_another_original_model_is_refused(place, capsys):
    model = AutoModelForCausalLM.from_pretrained("model")
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] += 1e-3
    model.save_pretrained("model")
    assert journal("replay", "run", "--to", "x.safetensors") == 2
    assert "other original weights" in capsys.readouterr().err and not Path("x.safetensors").exists()
