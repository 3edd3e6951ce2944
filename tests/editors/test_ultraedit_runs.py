"""UltraEdit under a trainer: a rejected batch leaves no trace, and a resumed run is the one that never stopped."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_edit.editors.ultraedit import UltraEdit
from tests.stream import editor, stream, trainer
from tests.tiny import save_tiny


class _Spoil(UltraEdit):
    """Gives NaN for the second batch."""

    calls = 0

    def solve(self, layer, inputs_TI, gradients_TO, avoid=None):
        delta = super().solve(layer, inputs_TI, gradients_TO, avoid)
        self.calls += 1
        if self.calls == 4:
            delta.left.mul_(float("nan"))
        return delta


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rejected_batch_leaves_no_trace_in_the_statistics(tmp_path, dtype):
    save_tiny(tmp_path / "model", "llama")
    module = editor(str(tmp_path / "model"), tmp_path / "cache", editor=_Spoil(lr=1e-3), guards=[], dtype=dtype)
    data = stream(tmp_path)
    trainer(tmp_path).fit(module, datamodule=data)
    assert module.edits == 6 and module.position == 8
    rows = [module.editor.rows(module.encoder, request, ()) for request in data.requests]
    counts = [len(row.rewriting[0].labels) for row in rows]
    assert float(module.editor.normaliser(0).count) == 2 * (sum(counts) - sum(counts[2:4]))
    for layer in module.layers:
        assert not torch.equal(module.master(layer), module.original(layer))
        assert torch.equal(module.anatomy.weight(layer), module.master(layer).detach().to(module.anatomy.dtype))


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path):
    save_tiny(tmp_path / "model", "gpt2")

    def fit(folder, ckpt=None, **options):
        folder.mkdir(exist_ok=True)
        module = editor(str(tmp_path / "model"), tmp_path / "cache", editor=UltraEdit(lr=1e-3), guards=[])
        saving = ModelCheckpoint(str(folder), save_last=True, every_n_train_steps=1)
        run = trainer(folder, [saving], enable_checkpointing=True, **options)
        run.fit(module, datamodule=stream(folder), ckpt_path=ckpt)
        return module

    whole = fit(tmp_path / "whole")
    fit(tmp_path / "part", max_steps=2)
    resumed = fit(tmp_path / "part", tmp_path / "part" / "last.ckpt")
    assert float(whole.editor.normaliser(0).count) > 0
    for name, value in whole.editor.state_dict().items():
        assert torch.equal(value, resumed.editor.state_dict()[name]), name
    for layer in whole.layers:
        assert torch.equal(whole.master(layer), resumed.master(layer))
