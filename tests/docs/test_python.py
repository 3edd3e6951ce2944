"""Every block of Python in README and docs runs: those of tutorials with their page, the others here, with less text."""

import ast
import contextlib
import io

import pages
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import lit_edit
from lit_edit.models.identity import load_pretrained
from lit_edit.statistics import preparation

OUTSIDE = [
    block
    for path in pages.PAGES
    for block in pages.blocks(path)
    if block.language == "python" and path.parent.name != "tutorials" and not block.title
]
README = next(block for block in OUTSIDE if "Facts(" in block.body)


def execute(block, **names):
    """Run a block, warnings being errors, and give back its names and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.body, block.name, "exec"), names)
    return names, printed.getvalue()


def test_every_block_is_known():
    assert {(block.page, block.body.split("\n")[0]) for block in OUTSIDE} == {
        ("README.md", "import lightning as L"),
        ("README.md", "# my_package/gentle.py"),
        ("docs/doctor.md", "import lit_edit"),
        ("docs/export.md", 'edit = lit_edit.EditDelta.load("DIR")'),
        ("docs/plan.md", "import lit_edit"),
        ("docs/export.md", "from peft import PeftModel"),
    }


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    """Ten statements, without YAML; with a tenth of the text for the second moments it says the same."""
    assert len(ast.parse(README.body).body) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "TOKENS_PER_INPUT", 1)
    _, printed = execute(README)
    shown = next(block for block in pages.blocks(pages.ROOT / "README.md") if block.language == "text")
    assert shown.body.strip() in printed


@pytest.mark.long
def test_the_example_of_the_readme_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, printed = execute(README)
    shown = next(block for block in pages.blocks(pages.ROOT / "README.md") if block.language == "text")
    assert shown.body.strip() in printed


def test_the_editor_of_the_readme(place):
    block = next(block for block in OUTSIDE if "gentle" in block.body)
    names, _ = execute(block)
    assert issubclass(names["Gentle"], lit_edit.Editor)


def test_the_examination_of_the_doctor():
    block = next(block for block in OUTSIDE if block.page == "docs/doctor.md")
    names, _ = execute(block, model=tiny_model("gpt2", n_layer=10), tokenizer=tiny_tokenizer())
    assert names["examination"].verdict in ("ok", "note", "off")


def test_the_delta_of_the_export(place):
    block = next(block for block in OUTSIDE if "EditDelta" in block.body)
    lit_edit.export_model("RUN", "DIR", "delta")
    model, _ = load_pretrained("FOLDER_OR_HUB_ID", None, torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    execute(block, lit_edit=lit_edit, model=model)
    assert all(bool((value == before[name]).all()) for name, value in model.named_parameters())


# What PEFT asks the newest transformers for has another name there.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_adapter_of_the_export(place):
    pytest.importorskip("peft", reason="needs the optional extra: pip install 'lit-edit[peft]'")
    block = next(block for block in OUTSIDE if "peft" in block.body)
    lit_edit.export_model("RUN", "DIR", "lora")
    base, _ = load_pretrained("FOLDER_OR_HUB_ID", None, torch.float32)
    names, _ = execute(block, base=base)
    assert any("lora" in name for name, _ in names["model"].named_parameters())
