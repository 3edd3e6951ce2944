"""Whole models: plain transformers loads them, and they are the edited model to the last bit."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from exported import TOKENS, logits, refused, same, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_edit.errors import EditError
from lit_edit.export import folder as folders

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
