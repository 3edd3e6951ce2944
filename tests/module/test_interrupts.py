"""Ctrl-C waits while a batch is applied, and is never lost."""

import os
import signal
import threading

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.runs.interrupts import Interrupts


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_one_interrupt_waits_and_a_second_gets_through():
    before, interrupts = signal.getsignal(signal.SIGINT), Interrupts()
    interrupts.hold()
    press()
    with pytest.raises(KeyboardInterrupt):
        interrupts.release()
    interrupts.hold()
    with pytest.raises(KeyboardInterrupt):
        press()
        press()
    assert signal.getsignal(signal.SIGINT) is before
    interrupts.release()


def test_without_an_interrupt_nothing_happens_also_in_another_thread():
    before, interrupts = signal.getsignal(signal.SIGINT), Interrupts()
    thread = threading.Thread(target=lambda: (interrupts.hold(), interrupts.release()))
    thread.start()
    thread.join()
    interrupts.hold()
    interrupts.release()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("when", "applied"), [("show_model", 3), ("log_dict", 2)])
def test_an_interrupt_in_the_middle_of_the_commit_resumes_to_the_same_weights(when, applied, tmp_path, monkeypatch):
    """The instant at which weights are written and nothing is noted yet, and the one right after it was noted."""
    model = str(save_tiny(tmp_path / "model", "gpt2"))

    def fit(folder, ckpt=None, at=None):
        folder.mkdir(exist_ok=True)
        module = editor(model, tmp_path / "cache")
        original = getattr(type(module), when)

        def pressing(self, *args, **kwargs):
            if module.batches == at and module._interrupts._before is not None:
                press()
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(type(module), when, pressing)
            keep = ModelCheckpoint(str(folder), save_last=True, every_n_train_steps=1, save_on_exception=True)
            run = trainer(folder, [keep], enable_checkpointing=True, val_check_interval=None, limit_val_batches=0)
            try:
                run.fit(module, datamodule=stream(folder), ckpt_path=ckpt)
            except SystemExit:  # how Lightning ends after an interrupt
                assert at is not None
        return module

    whole, part = fit(tmp_path / "whole"), fit(tmp_path / "part", at=2)
    assert part.batches == applied, "the batch in flight is applied, and then the run ends"
    resumed = fit(tmp_path / "part", tmp_path / "part" / "last.ckpt")
    for layer in whole.layers:
        assert torch.equal(whole.master(layer), resumed.master(layer))
    assert resumed.position == whole.position == 8
