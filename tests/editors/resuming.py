"""A run under a trainer that stops and goes on, for editors with a state of their own."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.stream import editor, stream, trainer
from tests.tiny import save_tiny


def stops_and_goes_on_with_the_same_bits(tmp_path, made):
    """Weights and state of a run that was stopped half-way and resumed are those of one that never stopped.

    Args:
        tmp_path: an empty folder.
        made: makes the editor of a run.
    """
    model = str(save_tiny(tmp_path / "model", "gpt2"))

    def fit(name, ckpt=None, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        module = editor(model, tmp_path / "cache", editor=made())
        saving = ModelCheckpoint(str(folder), save_last=True, every_n_train_steps=1)
        run = trainer(folder, [saving], enable_checkpointing=True, **options)
        run.fit(module, datamodule=stream(folder), ckpt_path=ckpt)
        return module

    whole = fit("whole")
    fit("part", max_steps=2)
    resumed = fit("part", tmp_path / "part" / "last.ckpt")
    assert whole.edits == resumed.edits == 8
    for layer in whole.layers:
        assert torch.equal(whole.master(layer), resumed.master(layer))
        assert not torch.equal(whole.master(layer), whole.original(layer))
    for name, value in whole.editor.state_dict().items():
        assert torch.equal(value, resumed.editor.state_dict()[name]), name
