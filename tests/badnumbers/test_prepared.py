"""NaN and Inf in what a run stands on: it ends in one sentence, before anything is written or with the last good checkpoint."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from methods import LOCATING, METHODS, STATELESS, editor, fit
from stream import facts
from tiny import tiny_model, tiny_tokenizer

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.callbacks import StreamCheckpoint
from lit_edit.errors import EditError
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.statistics.preparation import second_moments

NUMBERS = {"nan": math.nan, "inf": math.inf}


def untouched(module, folder):
    """No batch, no checkpoint, and the weights that were loaded."""
    assert module.journal.count == 0 and not list(folder.rglob("*.ckpt"))
    for layer in module.layers:
        assert torch.equal(module.master(layer), module.original(layer))
        assert torch.equal(module.anatomy.weight(layer), module.original(layer))


def checkpoints(folder):
    return StreamCheckpoint(str(folder / "checkpoints"), save_last=True, every_n_train_steps=1)


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("method", LOCATING)
def test_a_second_moment_that_is_not_finite_ends_the_run(tiny, tmp_path, monkeypatch, method, kind):
    def spoilt(*args, **kwargs):
        found = second_moments(*args, **kwargs)
        found[0].mean[3, 4] = NUMBERS[kind]
        return found

    monkeypatch.setattr("lit_edit.edited.second_moments", spoilt)
    module = editor(tiny, method)
    with pytest.raises(EditError, match=r"^the second moment of layer 0 holds numbers that are not finite; .*cache_dir"):
        fit(module, tmp_path, facts(2), (checkpoints(tmp_path),))
    untouched(module, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_on_disk_that_is_not_finite_ends_the_run(tiny, tmp_path, method):
    kind = "inf" if method in STATELESS else "nan"
    name = "transformer.h.0.mlp.c_proj.weight" if method in LOCATING else "transformer.h.2.attn.c_attn.bias"
    model = tiny_model("gpt2", n_inner=48)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = NUMBERS[kind]
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    module = editor(tiny, method)
    module.pretrained = str(tmp_path / "model")
    with pytest.raises(EditError, match=rf"^{name} of the model .*, loaded as float32, holds .* not finite; the files are"):
        fit(module, tmp_path, facts(2), (checkpoints(tmp_path),))
    assert module.journal.count == 0 and not list(tmp_path.rglob("*.ckpt"))


def test_weights_that_overflow_in_the_dtype_asked_for_end_the_run(tiny, tmp_path):
    model = tiny_model("gpt2", n_inner=48)
    with torch.no_grad():
        model.get_parameter("transformer.wte.weight")[7, 7] = 1e5  # finite, and more than float16 holds
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    module = editor(tiny, "MEMIT", dtype="float16")
    module.pretrained = str(tmp_path / "model")
    with pytest.raises(EditError, match=r"wte\.weight .* loaded as float16, .* float16 cannot hold them"):
        module.configure_model()


class Spoil:
    """Puts a number into a run's weights or state when a batch begins."""

    def __init__(self, module, batch, what, number, after_the_save):
        self.module, self.batch, self.what, self.number = module, batch, what, number
        if after_the_save:  # Lightning calls the module after its callbacks
            own = module.on_train_batch_start

            def begin(batch, batch_idx):
                own(batch, batch_idx)
                self.act(batch_idx)

            module.on_train_batch_start = begin
        else:
            self.callback = Callback()
            self.callback.on_train_batch_start = lambda trainer, module, batch, batch_idx: self.act(batch_idx)

    def act(self, batch_idx):
        if batch_idx == self.batch:
            self.what(self.module).view(-1)[3] = self.number


def master(module):
    return module.master(0).data


def carried(module):
    """The first buffer of the editor's state that has a number in it."""
    return next(value for value in module.editor.buffers() if value.is_floating_point() and value.numel() > 3)


def ends_at(tiny, folder, module, match, callbacks=(), count=6):
    """The run ends; its last checkpoint is that behind the first batch. Returns what it holds."""
    with pytest.raises(EditError, match=match):
        fit(module, folder, facts(count), (*callbacks, checkpoints(folder)))
    assert [record["rejected"] for record in module.journal.records()] == [None, None]
    saved = SafetensorsCheckpointIO().load_checkpoint(str(folder / "checkpoints" / "last.ckpt"))
    assert saved["lit_edit"]["batches"] <= 2
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values() if value.is_floating_point())
    return saved


@pytest.mark.parametrize(("method", "kind"), [*((name, "nan") for name in METHODS), ("MEMIT", "inf"), ("FT", "inf")])
def test_an_edited_weight_that_is_spoilt_between_two_batches_ends_the_run(tiny, tmp_path, method, kind):
    module = editor(tiny, method)
    Spoil(module, 2, master, NUMBERS[kind], after_the_save=True)
    match = r"^the edited weight of layer 0 holds numbers that are not finite; go on from the latest checkpoint"
    saved = ends_at(tiny, tmp_path, module, match)
    assert saved["lit_edit"]["batches"] == 2, "the one before the weight was spoilt"


@pytest.mark.parametrize("method", [name for name in METHODS if name not in STATELESS])
def test_state_that_is_spoilt_between_two_batches_ends_the_run(tiny, tmp_path, method):
    module = editor(tiny, method)
    Spoil(module, 2, carried, math.nan, after_the_save=True)
    match = rf"^the state of {method} \(\S+\) holds numbers that are not finite; go on from the latest checkpoint"
    assert ends_at(tiny, tmp_path, module, match)["lit_edit"]["batches"] == 2


@pytest.mark.parametrize("what", [master, carried])
def test_nothing_that_is_not_finite_is_saved(tiny, tmp_path, what):
    module = editor(tiny, "MEMIT")
    spoil = Spoil(module, 2, what, math.inf, after_the_save=False)
    saved = ends_at(tiny, tmp_path, module, "holds numbers that are not finite", (spoil.callback,))
    assert saved["lit_edit"]["batches"] == 1, "the one behind the second batch was refused"
    whole, resumed = editor(tiny, "MEMIT"), editor(tiny, "MEMIT")
    fit(whole, tmp_path / "whole", facts(6))
    fit(resumed, tmp_path, facts(6), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert resumed.journal.count == 3
    assert all(torch.equal(resumed.master(layer), whole.master(layer)) for layer in whole.layers)


class Scale(Callback):
    """Multiplies the gradients of a batch, as a schedule or a clipping gone wrong would."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.batches == 2:
            for layer in pl_module.layers:
                pl_module.master(layer).grad.mul_(math.inf)


@pytest.mark.parametrize("method", ["MEMIT", "FT"])
def test_a_step_whose_result_is_not_finite_is_taken_back(tiny, tmp_path, method):
    module = editor(tiny, method)
    match = r"^the edited weight of layer 0 holds numbers that are not finite"
    saved = ends_at(tiny, tmp_path, module, match, (Scale(),))
    assert saved["lit_edit"]["batches"] == 2
    for layer in module.layers:
        assert torch.equal(module.master(layer), saved["state_dict"][f"masters.layer_{layer}"])
        assert torch.equal(module.anatomy.weight(layer), module.master(layer))


@pytest.mark.parametrize("name", ["masters.layer_1", "editor.earlier.0.keys"])
def test_a_checkpoint_that_holds_no_numbers_is_refused(tiny, tmp_path, name):
    fit(editor(tiny, "MEMIT"), tmp_path, facts(6), (checkpoints(tmp_path),), max_steps=2)
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    saved = SafetensorsCheckpointIO().load_checkpoint(path)
    saved["state_dict"][name].view(-1)[0] = math.nan
    SafetensorsCheckpointIO().save_checkpoint(saved, str(tmp_path / "spoilt.ckpt"))
    with pytest.raises(EditError, match=rf"^the checkpoint's {name} holds numbers that are not finite; resume from an earlier"):
        fit(editor(tiny, "MEMIT"), tmp_path, facts(6), ckpt_path=str(tmp_path / "spoilt.ckpt"))


def test_a_moment_may_be_as_asymmetric_as_rounding_makes_it():
    mean = torch.eye(4)
    mean[0, 1] = 1e-4
    SecondMoment(mean, 10).check("it")
    with pytest.raises(EditError, match="it is not symmetric"):
        SecondMoment(mean + torch.eye(4).roll(1, 0), 10).check("it")
