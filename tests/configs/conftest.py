"""A place of one's own: no folder of configurations in sight, no arguments of the test runner."""

import sys

import pytest
from stream import write_facts


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Everything here must work from any folder."""
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    write_facts(tmp_path / "facts.jsonl", 4)
    return tmp_path
