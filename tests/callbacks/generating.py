"""A run with generated answers, and the lines that it has left."""

import json

from stream import editor, stream, trainer

from lit_edit.callbacks import StreamCheckpoint


def saving(folder, every=1):
    return StreamCheckpoint(
        str(folder / "checkpoints"),
        save_last=True,
        every_n_train_steps=every,
        save_on_exception=True,
        enable_version_counter=False,
    )


def fit(model, folder, watcher, ckpt=None, callbacks=(), count=8, module=None, every=1, data=None, **options):
    folder.mkdir(exist_ok=True)
    module = module or editor(model, folder.parent / "cache")
    run = trainer(folder, [*callbacks, watcher, saving(folder, every)], enable_checkpointing=True, **options)
    run.fit(module, datamodule=data or stream(folder, count), ckpt_path=ckpt)
    return module


def lines(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def last(folder):
    return str(folder / "checkpoints" / "last.ckpt")
