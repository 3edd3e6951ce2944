"""A folder in which everything that the documentation names is really there, small."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import pages
import pytest
import yaml
from stream import facts
from tiny import save_tiny

from lit_edit.__main__ import main

SMALL = [
    *("--model.targets.steps", "2", "--model.targets.contexts", "1", "--model.moment_tokens", "400", "--data.batch_size", "2"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.probes", "[]"),
]


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """The folder; commands are given in copies of it."""
    folder = tmp_path_factory.mktemp("furnished")
    for name in ("FOLDER_OR_HUB_ID", "FOLDER"):
        save_tiny(folder / name, "gpt2")
    (folder / "configs").symlink_to(pages.ROOT / "configs")
    (folder / "checkpoints").mkdir()
    for model in (pages.ROOT / "checkpoints").glob("world-*"):
        (folder / "checkpoints" / model.name).symlink_to(model)
    records = [{**fact, "case_id": "ID" if i == 3 else str(i)} for i, fact in enumerate(facts(6))]
    for name in ("facts.jsonl", "multi_counterfact.json", "counterfact.json"):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    mine = {"model": {"pretrained": "FOLDER_OR_HUB_ID", "editor": {"class_path": "MEMIT"}}, "data": {"path": "facts.jsonl"}}
    (folder / "my.yaml").write_text(json.dumps(mine), encoding="utf-8")
    (folder / "my_package").mkdir()
    for path in pages.PAGES:
        for block in pages.blocks(path):
            if block.title or block.body.startswith("# my_package/"):
                target = folder / (block.title or block.body.split()[1])
                if not target.exists():
                    target.write_text(block.body, encoding="utf-8")
    here, given = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["lit-edit"]
    try:
        with warnings.catch_warnings():
            assert main(["fit", "--config", "counterfact", "--config", "my.yaml", "--run_dir", "RUN", *SMALL]) == 0
    finally:
        os.chdir(here)
        sys.argv = given
    (folder / "runs").mkdir()
    for name in ("quickstart", "edit", "mine", "long", "two", "revive", "none"):
        shutil.copytree(folder / "RUN", folder / "runs" / name)
        config = folder / "runs" / name / "config.yaml"  # of a run over the embedded world's facts, as those of the pages are
        said = yaml.safe_load(config.read_text(encoding="utf-8"))
        said["data"] |= {"path": None, "source": {"class_path": "lit_edit.data.WorldFacts", "init_args": {"n": 6}}}
        config.write_text(yaml.safe_dump(said), encoding="utf-8")
    return folder


@pytest.fixture
def place(furnished, tmp_path, monkeypatch):
    """A copy of the folder to stand in, without arguments of the test runner."""
    folder = tmp_path / "place"
    shutil.copytree(furnished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_package", "mine")]:
        monkeypatch.delitem(sys.modules, name)
    return Path(folder)
