"""A disk that takes no more while a run saves: the run ends with one sentence, and what was saved before still is."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.runs.checkpoint_folder import newest
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

FAULTS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_facts(folder / "facts.jsonl", 8)
    save_tiny(folder / "model", "gpt2")
    return folder


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)


def fit(folder: Path, *more: str) -> int:
    return main(
        [
            *("fit", "--model.pretrained", str(folder / "model"), "--data.path", str(folder / "facts.jsonl")),
            *("--data.batch_size", "2", "--run_dir", "run", "--ckpt_path", "last", "--baseline", "false", "--final", "false"),
            *("--model.editor", "MEMIT", "--model.editor.lam", "10", "--model.layers", "[0,1]", "--model.targets.steps", "2"),
            *("--model.targets.contexts", "2", "--model.moment_tokens", "300", "--model.cache_dir", str(folder / "cache")),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "100"),
            *("--checkpoint.every_n_train_steps", "1"),
            *more,
        ]
    )


class Disk:
    """Fails at one step of every write of a file whose name holds ``what``, once the run has ``after`` checkpoints."""

    def __init__(self, monkeypatch, what: str, step: str, number: int, after: int = 2) -> None:
        self.what, self.step, self.number, self.after = what, step, number, after
        self.names: dict[int, str] = {}
        self.failed = 0
        for name in ("open", "fdopen", "fsync", "replace"):
            monkeypatch.setattr(os, name, getattr(self, name)(getattr(os, name)))

    def _fails(self, step: str, path: str) -> None:
        there = [path for path in Path("run/checkpoints").glob("batch*.ckpt")] if self.after else [path]
        if step == self.step and self.what in path and len(there) >= self.after:
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number), path)

    def open(self, real):
        def act(path, flags, *args, **kwargs):
            if flags & os.O_CREAT:
                self._fails("open", os.fspath(path))
            handle = real(path, flags, *args, **kwargs)
            self.names[handle] = os.fspath(path)
            return handle

        return act

    def fdopen(self, real):
        def act(handle, *args, **kwargs):
            file, path = real(handle, *args, **kwargs), self.names.get(handle, "")
            if self.step == "write" and self.what in path:
                file = _Full(file, lambda: self._fails("write", path))
            return file

        return act

    def fsync(self, real):
        def act(handle):
            path = self.names.get(handle, "")
            self._fails("folder" if os.path.isdir(path) else "fsync", path)
            real(handle)

        return act

    def replace(self, real):
        def act(source, target):
            self._fails("replace", os.fspath(target))
            real(source, target)

        return act


class _Full:
    def __init__(self, file, fails):
        self._file, self._fails = file, fails

    def writelines(self, parts):
        parts = b"".join(parts)
        self._file.write(parts[: len(parts) // 2])
        self._fails()
        self._file.write(parts[len(parts) // 2 :])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    try:
        assert fit(model) == 0
        return SafetensorsCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")["state_dict"]
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("fault", "step"),
    [("full", "open"), ("full", "write"), ("broken", "fsync"), ("read-only", "replace"), ("broken", "folder")],
)
def test_a_fault_while_a_checkpoint_is_saved_ends_the_run_and_keeps_the_one_before(
    model, whole, fault, step, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        disk = Disk(patched, "checkpoints" if step == "folder" else ".ckpt", step, FAULTS[fault])
        assert fit(model) == 2
        # A second name for the newest one cannot be had either; then last.ckpt is tried as a file of its own.
        assert disk.failed == (3 if step == "replace" else 1), "the run tries once, and not again on its way out"
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lit-edit: error: ") and "/run/checkpoints/" in said
    assert said.endswith(f" cannot be written: {os.strerror(FAULTS[fault])}")
    found = newest(Path("run/checkpoints"))
    assert found is not None and found.batches >= 2 and not found.passed_over
    assert not list(Path("run/checkpoints").glob(".*")), "nothing half written stays"
    assert fit(model) == 0
    for name, value in SafetensorsCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")["state_dict"].items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("what", ["metrics.csv", "summary.json", "journal"])
def test_a_full_disk_anywhere_ends_in_one_sentence(model, what, whole, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        disk = Disk(patched, what, "replace", errno.ENOSPC, after=0)
        assert fit(model, "--trainer.val_check_interval", "1") == 2
        assert disk.failed
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lit-edit: error: ") and "No space left on device" in said
    assert fit(model) == 0
    for name, value in SafetensorsCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")["state_dict"].items():
        assert torch.equal(value, whole[name]), name


def test_a_disk_that_gives_back_other_bytes_is_noticed_before_the_old_checkpoint_is_replaced(tmp_path, monkeypatch):
    from lit_edit.errors import EditError

    io, path = SafetensorsCheckpointIO(), tmp_path / "x.ckpt"
    io.save_checkpoint({"a": torch.arange(3), "lit_edit": {"batches": 1}}, path)
    before, fsync = path.read_bytes(), os.fsync

    def rots(handle):
        fsync(handle)
        name = os.readlink(f"/proc/self/fd/{handle}")
        if ".ckpt" in name:
            content = Path(name).read_bytes()
            Path(name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(os, "fsync", rots)
    with pytest.raises(EditError, match="does not give back what was written"):
        io.save_checkpoint({"a": torch.arange(4), "lit_edit": {"batches": 2}}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
