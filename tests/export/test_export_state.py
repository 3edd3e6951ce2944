"""Which weights of a run are exported, and what is refused because they are not those that the run had."""

import shutil

import pytest
import torch
import yaml
from exported import logits, refused, same, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

import lit_edit
from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.journal.book import open_book
from lit_edit.journal.model import Unedited


def test_a_state_is_taken_from_its_checkpoint_or_from_the_journal(gpt2, export, tmp_path, capsys):
    book = open_book(gpt2.folder)
    model = Unedited.of(gpt2.folder, book.layers)
    for batches, source in ((2, "from the checkpoint batch-step=2.ckpt"), (3, "from a replay of the journal"), (5, "ckpt")):
        assert export(gpt2.folder, "--to", tmp_path / str(batches), "--batches", batches) == 0
        told = capsys.readouterr().out
        assert source in told and f"behind {batches} batches ({2 * batches} edits)" in told
        found = edited_layers(tmp_path / str(batches))
        for layer, value in book.weights(model.original, batches).items():
            assert torch.equal(found[layer], value)


def test_a_checkpoint_can_be_named(gpt2, export, tmp_path):
    assert export(gpt2.folder, "--to", tmp_path / "out", "--checkpoint", gpt2.last.with_name("batch-step=4.ckpt")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), gpt2.edited("batch-step=4.ckpt")[1])


def test_from_python(gpt2, tmp_path):
    done = lit_edit.export_model(gpt2.folder, tmp_path / "out", batches=4)
    assert (done.batches, done.edits, done.folder) == (4, 8, tmp_path / "out")
    assert done.upload == f"hf upload YOUR_NAME/out {tmp_path / 'out'}"
    with pytest.raises(EditError, match="--format is 'gguf'; it is one of full, delta, lora"):
        lit_edit.export_model(gpt2.folder, tmp_path / "other", "gguf")


def edited_layers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {layer: model.transformer.h[layer].mlp.c_proj.weight.data.T for layer in (0, 1)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batches", "0"], "stands the unedited model"),
        (["--batches", "6"], "holds 5 batches, so 6 is not between"),
        (["--batches", "-1"], "holds 5 batches, so -1 is not between"),
        (["--batches", "2", "--checkpoint", "x.ckpt"], "give one of them"),
        (["--checkpoint", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--format", "lora", "--rank", "0"], "ranks begin at 1"),
        (["--format", "lora", "--tolerance", "2"], "tolerances lie between"),
        (["--rank", "4"], "belong to --format lora, and --format is full"),
        (["--format", "onnx"], "invalid choice: 'onnx'"),
        (["--weights", "dense"], "invalid choice: 'dense'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(gpt2, export, tmp_path, capsys, arguments, told):
    assert told in refused(export, capsys, gpt2.folder, "--to", tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(gpt2, export, tmp_path, capsys, copied):
    assert "there is no folder" in refused(export, capsys, tmp_path / "nowhere", "--to", tmp_path / "out")
    assert "holds no config.yaml" in refused(export, capsys, gpt2.pretrained, "--to", tmp_path / "out")
    (copied.folder / "journal.jsonl").unlink()
    assert "holds no journal.jsonl" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    (copied.folder / "summary.json").unlink()
    assert "has not come as far as its first scores" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    assert "required: --to" in refused(export, capsys, copied.folder)
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_taken_back_has_not_finished(copied, export, tmp_path, capsys):
    """Its summary is older than that, and says that it had."""
    assert main(["journal", "rollback", str(copied.folder), "--to", "4"]) == 0
    told = refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    assert "has not finished: its newest checkpoint stands behind 4 batches; go on with it (--run_dir" in told
    assert "--batches N" in told
    assert export(copied.folder, "--to", tmp_path / "out", "--batches", 4) == 0
    assert "not the end of a stream, but its state behind 4 batches" in (tmp_path / "out" / "README.md").read_text()


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))


def test_a_run_whose_newest_checkpoint_is_damaged_is_refused_and_a_state_of_it_can_be_named(copied, export, tmp_path, capsys):
    for name in ("last.ckpt", "batch-step=5.ckpt"):
        flip(copied.folder / "checkpoints" / name, -100)
    told = refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    assert "is damaged: its newest checkpoint that is whole stands behind 4 of 5 batches" in told and "checksum" in told
    assert "checksum does not fit" in refused(
        export, capsys, copied.folder, "--to", tmp_path / "o", "--checkpoint", copied.last
    )
    assert export(copied.folder, "--to", tmp_path / "out", "--batches", 5) == 0
    assert "from a replay of the journal" in capsys.readouterr().out


def test_a_run_without_checkpoints_is_told_of_the_journal(copied, export, tmp_path, capsys):
    for path in (copied.folder / "checkpoints").iterdir():
        path.unlink()
    told = refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    assert "holds no checkpoint" in told and "--batches N to have the journal replayed" in told


def test_a_damaged_journal_is_refused(copied, export, tmp_path, capsys):
    path = copied.folder / "journal.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("born", "torn", 1))
    assert "record 0 is not what was written" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    path.write_text(whole[:-20])
    assert "in the middle of record 4" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    assert "stands behind 5 batches, and its journal holds 3" in refused(
        export, capsys, copied.folder, "--to", tmp_path / "out"
    )
    flip(copied.folder / "journal" / "batch-000002.safetensors", -3)
    told = refused(export, capsys, copied.folder, "--to", tmp_path / "out", "--batches", 3)
    assert "batch-000002.safetensors is damaged" in told


def test_a_checkpoint_of_another_run_is_refused(gpt2, prune, export, tmp_path, capsys):
    told = refused(export, capsys, gpt2.folder, "--to", tmp_path / "out", "--checkpoint", prune.last)
    assert "does not hold the weights that" in told and "it is no checkpoint of that run" in told


def test_another_base_model_is_refused(copied, export, tmp_path, capsys):
    model = copied.base()
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(copied.pretrained).save_pretrained(tmp_path / "model")
    path = copied.folder / "config.yaml"
    path.write_text(path.read_text().replace(copied.pretrained, str(tmp_path / "model")))
    assert "belongs to other original weights" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")
    path.write_text(path.read_text().replace(str(tmp_path / "model"), str(tmp_path / "gone")))
    assert "there is no model folder" in refused(export, capsys, copied.folder, "--to", tmp_path / "out")


@pytest.mark.parametrize(
    ("guards", "told"),
    [
        ([{"class_path": "lit_edit.guards.REVIVE"}], "names other guards than the run had (PRUNE)"),
        ([{"class_path": "lit_edit.guards.PRUNE", "init_args": {"restraint": "log3"}}], "log3"),
        ([{"class_path": "nowhere.Guard"}], "cannot be made"),
        ("PRUNE", "cannot be made"),
        (None, "names other guards than the run had (PRUNE)"),
    ],
)
def test_guards_that_are_not_those_of_the_run_are_refused(prune, export, tmp_path, capsys, guards, told):
    """Written weights need no guard."""
    shutil.copytree(prune.folder, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["model"]["guards"] = guards
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert told in refused(export, capsys, tmp_path / "run", "--to", tmp_path / "out")
    assert export(tmp_path / "run", "--to", tmp_path / "out", "--weights", "written") == 0
    assert "whether PRUNE showed evaluation others is not known" in capsys.readouterr().out
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), prune.edited(evaluated=False)[0])
