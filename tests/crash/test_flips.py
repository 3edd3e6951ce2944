"""A byte changed anywhere in a checkpoint or a cached artefact is noticed, and no run goes on from what it touched.

The short form changes a few hundred bytes, the long one (``-m long``) a thousand of each.
"""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.callbacks import StreamCheckpoint
from lit_edit.errors import EditError
from lit_edit.runs.checkpoint_folder import newest
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO, prove
from lit_edit.store import Store

SIZES = [pytest.param(200, id="short"), pytest.param(1000, id="long", marks=pytest.mark.long)]


def saving(folder, every=2, **options):
    return StreamCheckpoint(
        str(folder),
        filename="batch-{step}",
        save_last=True,
        every_n_train_steps=every,
        save_on_exception=True,
        enable_version_counter=False,
        **options,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four batches and a checkpoint after every second one."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny(folder / "model", "gpt2")
    module = editor(str(folder / "model"), folder / "cache")
    keep = saving(folder / "checkpoints")
    trainer(folder, [keep], enable_checkpointing=True).fit(module, datamodule=stream(folder))
    return folder


def flips(content: bytes, count: int, seed: int):
    """Copies of some bytes with one of them changed, at random places and to random values; the ends are among them."""
    chosen = random.Random(seed)
    places = [0, 7, 8, len(content) - 1, *(chosen.randrange(len(content)) for _ in range(count - 4))]
    for at in places:
        yield at, content[:at] + bytes([content[at] ^ chosen.randrange(1, 256)]) + content[at + 1 :]


@pytest.mark.parametrize("count", SIZES)
def test_a_changed_byte_of_a_checkpoint_is_noticed(run, tmp_path, count):
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    path = tmp_path / "changed.ckpt"
    for at, content in flips(whole, count, 0):
        path.write_bytes(content)
        for read in (prove, SafetensorsCheckpointIO().load_checkpoint):
            with pytest.raises(EditError, match=r"changed\.ckpt"):
                read(path)
                pytest.fail(f"byte {at} was changed and nobody noticed")
    path.write_bytes(whole)
    assert prove(path)["batches"] == 4


@pytest.mark.parametrize("count", SIZES)
def test_a_changed_byte_of_a_cached_artefact_is_never_used(tmp_path, count):
    store, identity = Store(tmp_path), {"kind": "second-moment", "layer": 3, "corpus": "wiki", "weights": "0" * 64}
    tensors = {"mean": torch.arange(64.0).reshape(8, 8), "count": torch.tensor(100)}
    path = store.put(identity, tensors, {"tokens": 100})
    files = {path: path.read_bytes(), path.with_suffix(".json"): path.with_suffix(".json").read_bytes()}
    refused = 0
    for file, whole in files.items():
        for at, content in flips(whole, count, 1):
            file.write_bytes(content)
            try:
                found = store.get(identity)
            except EditError:  # the note says that it belongs to something else
                refused += 1
                continue
            if found is None:
                refused += 1
                continue
            # What nothing depends on may have changed: white space, or what the note tells a reader.
            assert file.suffix == ".json", f"byte {at} of {file.name} was changed and nobody noticed"
            assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
        file.write_bytes(whole)
    assert refused > count, "every change of the tensor file, and most of its note"


def test_last_means_the_newest_checkpoint_that_is_whole(run, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    assert {path.name for path in folder.iterdir()} == {"batch-step=2.ckpt", "batch-step=4.ckpt", "last.ckpt"}
    found = newest(folder)
    assert found is not None and (found.path.name, found.batches, found.passed_over) == ("last.ckpt", 4, ())
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[:-100])
    found = newest(folder)
    assert found is not None and found.path.name == "batch-step=4.ckpt" and len(found.passed_over) == 1
    (folder / "batch-step=4.ckpt").write_bytes(b"")
    found = newest(folder)
    assert found is not None and (found.path.name, found.batches) == ("batch-step=2.ckpt", 2)
    assert all(name in " ".join(found.passed_over) for name in ("last.ckpt", "batch-step=4.ckpt"))
    (folder / ".last.ckpt.12-ab").write_bytes(whole)  # one that was never finished
    (folder / "batch-step=2.ckpt").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(EditError, match="none of the checkpoints") as told:
        newest(folder)
    assert all(name in str(told.value) for name in ("last.ckpt", "batch-step=4.ckpt", "batch-step=2.ckpt"))
    assert newest(tmp_path / "nowhere") is None


def test_two_generations_stay_and_the_last_one_is_no_copy(run, tmp_path):
    module = editor(str(run / "model"), run / "cache")

    class Look(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, *_):
            self.seen.append(sorted(path.name for path in (tmp_path / "checkpoints").glob("*")))

    look = Look()
    trainer(tmp_path, [look, saving(tmp_path / "checkpoints", 1)], enable_checkpointing=True).fit(
        module, datamodule=stream(tmp_path)
    )
    assert look.seen[1:] == [
        ["batch-step=1.ckpt", "last.ckpt"],
        ["batch-step=1.ckpt", "batch-step=2.ckpt", "last.ckpt"],
        ["batch-step=2.ckpt", "batch-step=3.ckpt", "last.ckpt"],
    ]
    kept = tmp_path / "checkpoints"
    assert (kept / "last.ckpt").samefile(kept / "batch-step=4.ckpt")


def test_a_run_that_keeps_only_its_last_checkpoint_keeps_the_one_before(run, tmp_path):
    module = editor(str(run / "model"), run / "cache")
    keep = saving(tmp_path / "checkpoints", save_top_k=0)
    trainer(tmp_path, [keep], enable_checkpointing=True).fit(module, datamodule=stream(tmp_path))
    said = {path.name: prove(path)["batches"] for path in (tmp_path / "checkpoints").iterdir()}
    assert said == {"last.ckpt": 4, "last-previous.ckpt": 2}


def test_an_older_layout_is_refused_in_a_sentence(run, tmp_path):
    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "old.ckpt").write_bytes(content.replace(b'"format":"lit_edit-2"', b'"format":"lit_edit-1"'))
    with pytest.raises(EditError, match=r"has the format lit_edit-1, this version reads lit_edit-2"):
        SafetensorsCheckpointIO().load_checkpoint(tmp_path / "old.ckpt")
