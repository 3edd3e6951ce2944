"""Every tutorial, run as it stands in an empty folder, with the outputs that it shows."""

import pages
import pytest
import running

TUTORIALS = [path for path in pages.PAGES if path.parent.name == "tutorials" and path.name != "index.md"]


def test_every_tutorial_is_listed():
    index = (pages.ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert len(TUTORIALS) >= 7 and all(f"({path.name})" in index for path in TUTORIALS)


@pytest.mark.long
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_it_stands(path, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert running.page(path, folder) >= 1, "a page whose outputs are compared with nothing cannot be wrong"
