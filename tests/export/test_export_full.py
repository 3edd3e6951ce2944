"""Whole models: plain transformers loads them, and they are the edited model to the last bit."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
import yaml
from exported import TOKENS, logits, same, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import lit_edit
from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.export import folder as folders
from lit_edit.journal.book import open_book
from lit_edit.journal.model import Unedited

_EDITED = {
    "gpt2": {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)},
    "llama": {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)},
}

_PLAIN = """
import sys, warnings
warnings.simplefilter("error")
sys.modules["lit_edit"] = None  # importing it fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {}
tokens = load_file(sys.argv[1])["tokens"]
for at, folder in enumerate(sys.argv[3:]):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out[f"logits{at}"] = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.contiguous()
    out[f"ids{at}"] = torch.tensor(AutoTokenizer.from_pretrained(folder)("Ada Lovelace was born in")["input_ids"])
save_file(out, sys.argv[2])
"""


def test_plain_transformers_gets_the_logits_of_the_edited_model(gpt2, llama, export, tmp_path):
    """In another process, without this project."""
    save_file({"tokens": TOKENS}, tmp_path / "tokens.safetensors")
    for name, ran in (("gpt2", gpt2), ("llama", llama)):
        assert export(ran.folder, "--to", tmp_path / name) == 0
    arguments = [tmp_path / "tokens.safetensors", tmp_path / "out.safetensors", tmp_path / "gpt2", tmp_path / "llama"]
    done = subprocess.run([sys.executable, "-c", _PLAIN, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    for at, ran in enumerate((gpt2, llama)):
        wanted = ran.edited()[1]
        assert found[f"logits{at}"].dtype == wanted.dtype == getattr(torch, ran.dtype)
        assert torch.equal(found[f"logits{at}"], wanted) and not torch.equal(wanted, logits(ran.base()))
        assert (
            found[f"ids{at}"].tolist() == AutoTokenizer.from_pretrained(ran.pretrained)("Ada Lovelace was born in")["input_ids"]
        )


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_only_the_edited_weights_differ_from_the_base(which, export, tmp_path, request):
    ran = request.getfixturevalue(which)
    assert export(ran.folder, "--to", tmp_path / "out") == 0
    model, base = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ran.base()
    assert same(weights(model), ran.edited()[0])
    before = weights(base)
    assert {name for name, value in weights(model).items() if not torch.equal(value, before[name])} == _EDITED[which]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (which == "gpt2"), "GPT-2's head is its embeddings, Llama's is its own"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {getattr(torch, ran.dtype)}
    assert ("lm_head.weight" in stored) != tied
    for given in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (tmp_path / "out" / given).is_file()
    said = GenerationConfig.from_pretrained(tmp_path / "out").to_dict()
    assert said == GenerationConfig.from_pretrained(ran.pretrained).to_dict()


def test_what_prune_shows_evaluation_is_exported_unless_the_written_weights_are_asked_for(prune, export, tmp_path, capsys):
    assert export(prune.folder, "--to", tmp_path / "seen") == 0
    assert "restrained by PRUNE; --weights written exports those that the run wrote" in capsys.readouterr().out
    assert export(prune.folder, "--to", tmp_path / "written", "--weights", "written") == 0
    assert "its scores are of others, which PRUNE showed" in capsys.readouterr().out
    seen, written = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("seen", "written"))
    assert same(weights(seen), prune.edited()[0]) and same(weights(written), prune.edited(evaluated=False)[0])
    assert not torch.equal(logits(seen), logits(written))
    assert "restrained by PRUNE" in (tmp_path / "seen" / "README.md").read_text()
    assert "scores are of others" in (tmp_path / "written" / "README.md").read_text()


def test_a_guard_of_ones_own_shows_what_its_state_says(fading, export, tmp_path, capsys):
    """That state stands in checkpoints; where the journal was replayed, there is none."""
    assert export(fading.folder, "--to", tmp_path / "out") == 0
    assert "restrained by Fading" in capsys.readouterr().out
    seen, _ = fading.edited()
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), seen)
    assert not same(seen, fading.edited(evaluated=False)[0])
    assert "depends on a guard's state" in refused(export, capsys, fading.folder, "--to", tmp_path / "one", "--batches", 1)
    assert export(fading.folder, "--to", tmp_path / "one", "--batches", 1, "--weights", "written") == 0


def test_without_such_a_guard_there_is_no_choice_to_tell(gpt2, export, tmp_path, capsys):
    for which in ("evaluated", "written"):
        assert export(gpt2.folder, "--to", tmp_path / which, "--weights", which) == 0
        assert "scores are of" not in capsys.readouterr().out
    files = [(tmp_path / which / "model.safetensors").read_bytes() for which in ("evaluated", "written")]
    assert files[0] == files[1]


# ---------------------------------------------------------------------------------------------------- which state


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


def refused(export, capsys, *arguments) -> str:
    """The one sentence."""
    assert export(*arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("lit-edit: error: "), told
    return told[0]


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


# ---------------------------------------------------------------------------------------------------- the folder


def test_a_place_that_is_taken_stays_as_it_is(gpt2, export, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty; name a new or an empty folder" in refused(export, capsys, gpt2.folder, "--to", tmp_path / "full")
    assert "which is a file" in refused(export, capsys, gpt2.folder, "--to", tmp_path / "full" / "mine.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert export(gpt2.folder, "--to", tmp_path / "link") == 0
    assert (tmp_path / "empty" / "config.json").is_file() and (tmp_path / "link").is_symlink()


def test_nothing_is_there_before_everything_is(tmp_path):
    """What interrupts the writing leaves no folder, and an error of the disk is one sentence."""
    target = tmp_path / "deep" / "out"
    for error, raised, told in (
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
        (OSError(28, os.strerror(28)), EditError, "cannot be written: No space left on device"),
    ):
        with pytest.raises(raised, match=told), folders.new_folder(target) as half:
            (half / "file").write_text("x")
            assert half.parent == target.parent and half.name.startswith(".out.") and not target.exists()
            raise error
        assert list(target.parent.iterdir()) == []
    with folders.new_folder(target) as half:
        (half / "file").write_text("x")
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(EditError, match="cannot be written"), folders.new_folder(tmp_path / "out") as half:
        (half / "file").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "old"


def test_everything_is_flushed_before_the_folder_has_its_name(tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))[1])
    monkeypatch.setattr(os, "rename", lambda old, new: (order.append("renamed"), rename(old, new))[1])
    with folders.new_folder(tmp_path / "out") as half:
        (half / "below").mkdir()
        (half / "below" / "file").write_text("x")
        name = str(half)
    at = order.index("renamed")
    assert set(order[:at]) == {name, f"{name}/below", f"{name}/below/file"} and order[at + 1 :] == [str(tmp_path)]


def test_files_are_readable_for_whom_the_umask_says(gpt2, export, tmp_path):
    """The library that writes the tensors makes files that only their owner can read."""
    before = os.umask(0o022)
    try:
        assert export(gpt2.folder, "--to", tmp_path / "out") == 0
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o644}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_the_last_line_says_how_to_publish_and_nothing_is(gpt2, export, tmp_path, capsys, monkeypatch):
    from huggingface_hub import HfApi

    for name in ("create_repo", "upload_folder", "create_commit", "upload_file"):
        monkeypatch.setattr(HfApi, name, lambda *args, **kwargs: pytest.fail("something was uploaded"))
    assert export(gpt2.folder, "--to", tmp_path / "my model") == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "nothing was uploaded" in last and last.endswith(f"hf upload YOUR_NAME/'my model' '{tmp_path / 'my model'}'")


def test_the_export_of_a_run_is_the_same_twice(gpt2, export, tmp_path):
    for name in ("one", "two"):
        assert export(gpt2.folder, "--to", tmp_path / name) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert json.loads((tmp_path / "one" / "config.json").read_text())["dtype"] == "float32"
