"""Generated answers of runs that were interrupted: no line is lost or doubled."""

import pytest
from generating import fit, last, lines
from lightning.pytorch.callbacks import Callback
from tiny import save_tiny

from lit_edit.callbacks import Generations
from lit_edit.errors import EditError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


class _Fail(Callback):
    def __init__(self, hook, at):
        setattr(self, hook, self._fail)
        self.at = at

    def _fail(self, trainer, *_):
        if trainer.global_step == self.at:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
@pytest.mark.parametrize("at", [3, 4])
def test_a_resumed_run_neither_loses_nor_doubles_lines(model, tmp_path, hook, at):
    fit(model, tmp_path / "whole", Generations(2, items=2, tokens=3, text_tokens=12), count=12)
    folder = tmp_path / "part"
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, Generations(2, items=2, tokens=3, text_tokens=12), callbacks=[_Fail(hook, at)], count=12)
    fit(model, folder, Generations(2, items=2, tokens=3, text_tokens=12), last(folder), count=12)
    assert lines(folder) == lines(tmp_path / "whole")


def test_lines_behind_an_older_checkpoint_are_cut_off(model, tmp_path):
    """As after a power cut: the file is ahead of the checkpoint and its last line is unfinished."""
    fit(model, tmp_path / "whole", Generations(1, items=2, tokens=3), count=12)
    folder = tmp_path / "part"
    fit(model, folder, Generations(1, items=2, tokens=3), count=12, max_steps=2)
    with (folder / "generations.jsonl").open("a") as file:
        file.write('{"edits": 6, "said": "of a lost batch"}\n{"edi')
    fit(model, folder, Generations(1, items=2, tokens=3), last(folder), count=12)
    assert lines(folder) == lines(tmp_path / "whole")


def test_an_interrupt_right_after_the_lines_were_written(model, tmp_path, monkeypatch):
    fit(model, tmp_path / "whole", Generations(2, items=2, tokens=3))
    folder, watcher = tmp_path / "part", Generations(2, items=2, tokens=3)
    keep = watcher._keep

    def halt(*arguments):
        keep(*arguments)
        watcher._lines = 0
        raise RuntimeError("on purpose")

    monkeypatch.setattr(watcher, "_keep", halt)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, watcher)
    assert lines(folder)
    fit(model, folder, Generations(2, items=2, tokens=3), last(folder))
    assert lines(folder) == lines(tmp_path / "whole")


def test_a_file_that_was_taken_away_does_not_end_the_run(model, tmp_path):
    folder = tmp_path / "run"
    fit(model, folder, Generations(2, items=2, tokens=3), max_steps=2)
    (folder / "generations.jsonl").unlink()
    fit(model, folder, Generations(2, items=2, tokens=3), last(folder))
    assert {line["edits"] for line in lines(folder)} == {8}


def test_another_runs_lines_survive_a_run_that_is_refused(model, tmp_path):
    folder = tmp_path / "run"
    fit(model, folder, Generations(2, items=2, tokens=3))
    before = lines(folder)
    with pytest.raises(EditError, match="holds a run of 4 batches"):
        fit(model, folder, Generations(2, items=2, tokens=3))
    assert lines(folder) == before
