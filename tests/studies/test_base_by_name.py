"""A study may start from a configuration that comes with the project, named as everywhere."""

from pathlib import Path

import pytest

from lit_edit.errors import EditError
from lit_edit.options.packaged import config_path
from lit_edit.studies.collapse import Collapse


def test_a_name_and_a_file_that_wins_over_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = {"MEMIT": {"model.guards": None}}
    assert Collapse(base="quickstart", arms=arms).base == config_path("quickstart")
    Path("quickstart").write_text(config_path("quickstart").read_text(encoding="utf-8"), encoding="utf-8")
    assert Collapse(base="quickstart", arms=arms).base == tmp_path / "quickstart"
    with pytest.raises(EditError, match=r"the study's base configuration .*/quikstart cannot be read"):
        Collapse(base="quikstart", arms=arms)
