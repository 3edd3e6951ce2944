"""Where the commands of these tests run."""

import sys

import pytest
from fitting import ROOT
from tiny import save_tiny


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """Commands run as a user would run them, but with their folders and arguments in a place of their own."""
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "checkpoints").mkdir()
    for model in (ROOT / "checkpoints").glob("world-*"):
        (tmp_path / "checkpoints" / model.name).symlink_to(model)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Folder of a tiny model."""
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))
