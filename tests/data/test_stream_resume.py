"""Whatever stops a run, the resumed one applies every batch once and in order."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_edit.data import EditStream, FactSource
from lit_edit.data.loader import StreamLoader
from lit_edit.errors import EditError
from lit_edit.request import EditRequest

BATCHES = 10
pytestmark = pytest.mark.filterwarnings("ignore")


class Facts(FactSource):
    def __init__(self, n, name="S"):
        self.n, self.name = n, name

    def requests(self):
        return [EditRequest("{} is in", f"{self.name}{i}", f"T{i}") for i in range(self.n)]


class Editor(LightningModule):
    """Applies a batch by noting its start *in the optimiser step*, as part of what a checkpoint holds."""

    def __init__(self, fail_at=None, error=RuntimeError):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.applied, self.looked = [], []
        self.fail_at, self.error = fail_at, error

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, batch_idx):
        assert batch.start == 3 * batch_idx  # Lightning's own count of batches agrees with the position
        if batch_idx == self.fail_at:
            raise self.error("interrupted")
        self.start = batch.start
        return self.weight.sum()

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.applied.append(self.start)

    def validation_step(self, batch, batch_idx):
        self.looked.append(batch.start)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["applied"] = list(self.applied)

    def on_load_checkpoint(self, checkpoint):
        self.applied = checkpoint["applied"]


class Stumble(Callback):
    """Fails after a batch has been applied, or in a validation."""

    def __init__(self, hook, at):
        self.hook, self.at = hook, at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.hook == "batch end" and batch_idx == self.at:
            raise RuntimeError("interrupted")

    def on_validation_start(self, trainer, module):
        if self.hook == "validation" and len(module.applied) > self.at:
            raise RuntimeError("interrupted")


def fit(folder, module, ckpt_path=None, callbacks=(), checkpoint=None, stream=None, **arguments):
    saver = ModelCheckpoint(folder, save_top_k=-1, **(checkpoint or {"save_on_exception": True}))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[*callbacks, saver],
        **{"max_epochs": 1, "limit_val_batches": 0, **arguments},
    )
    trainer.fit(module, datamodule=stream or EditStream(source=Facts(3 * BATCHES - 1), batch_size=3), ckpt_path=ckpt_path)
    return trainer


def newest(folder):
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


EVERYTHING = [3 * i for i in range(BATCHES)]


def test_a_run_that_never_stops(tmp_path):
    module = Editor()
    assert fit(tmp_path, module).global_step == BATCHES
    assert module.applied == EVERYTHING


@pytest.mark.parametrize("at", [1, 4, BATCHES - 1])
@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_interrupted_in_a_step(tmp_path, at, error, raised):
    first = Editor(fail_at=at, error=error)
    with pytest.raises(raised):
        fit(tmp_path, first)
    assert first.applied == EVERYTHING[:at]
    second = Editor()
    assert fit(tmp_path, second, newest(tmp_path)).global_step == BATCHES
    assert second.applied == EVERYTHING


@pytest.mark.parametrize("at", [1, 4])
def test_interrupted_after_a_batch_was_applied(tmp_path, at):
    first = Editor()
    with pytest.raises(RuntimeError):
        fit(tmp_path, first, callbacks=[Stumble("batch end", at)])
    assert first.applied == EVERYTHING[: at + 1]
    second = Editor()
    fit(tmp_path, second, newest(tmp_path))
    assert second.applied == EVERYTHING


def test_interrupted_in_a_validation(tmp_path):
    arguments = {"val_check_interval": 3, "limit_val_batches": 1.0}
    with pytest.raises(RuntimeError):
        fit(tmp_path, Editor(), callbacks=[Stumble("validation", 4)], **arguments)
    second = Editor()
    fit(tmp_path, second, newest(tmp_path), **arguments)
    assert second.applied == EVERYTHING


@pytest.mark.parametrize("max_steps", [3, 4, 7])
def test_max_steps_with_a_checkpoint_every_other_step(tmp_path, max_steps):
    every_other = {"every_n_train_steps": 2}
    first = Editor()
    fit(tmp_path, first, checkpoint=every_other, max_steps=max_steps)
    assert first.applied == EVERYTHING[:max_steps]
    second = Editor()
    fit(tmp_path, second, newest(tmp_path), checkpoint=every_other)
    assert second.applied == EVERYTHING


def test_killed_twice_and_resumed_with_validations_in_between(tmp_path):
    arguments = {"val_check_interval": 2, "limit_val_batches": 1.0, "checkpoint": {"every_n_train_steps": 3}}
    with pytest.raises(RuntimeError):
        fit(tmp_path, Editor(fail_at=4), **arguments)
    with pytest.raises(RuntimeError):
        fit(tmp_path, Editor(fail_at=8), newest(tmp_path), **arguments)
    last = Editor()
    fit(tmp_path, last, newest(tmp_path), **arguments)
    assert last.applied == EVERYTHING


def test_a_finished_run_edits_nothing_again(tmp_path):
    fit(tmp_path, Editor(), checkpoint={"every_n_train_steps": 1})
    again = Editor()
    fit(tmp_path, again, newest(tmp_path))
    assert again.applied == EVERYTHING


def test_a_second_epoch_after_a_resume_is_the_whole_stream(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, Editor(fail_at=4), max_epochs=2)
    second = Editor()
    fit(tmp_path, second, newest(tmp_path), max_epochs=2)
    assert second.applied == EVERYTHING * 2


def test_a_changed_batch_size_is_refused_before_anything_is_edited(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, Editor(fail_at=4))
    other = EditStream(source=Facts(29), batch_size=5)
    with pytest.raises(EditError, match="batch_size 3, this run has 5"):
        fit(tmp_path / "second", Editor(), newest(tmp_path), stream=other)


def resumed(state, n, batch_size=3, name="S"):
    loader = StreamLoader(Facts(n, name).requests(), batch_size, lambda: 0)
    loader.load_state_dict(state)
    return [batch.start for batch in loader]


def state(n, position, batch_size=3):
    return StreamLoader(Facts(n).requests(), batch_size, lambda: position).state_dict()


def test_the_stream_may_grow_behind_the_position():
    assert resumed(state(10, 2), 10) == [6, 9]
    assert resumed(state(10, 2), 14) == [6, 9, 12]
    assert resumed(state(9, 3), 12) == [9]
    assert resumed(state(10, 4), 10) == []


def test_the_length_stays_that_of_the_whole_stream():
    loader = StreamLoader(Facts(10).requests(), 3, lambda: 0)
    loader.load_state_dict(state(10, 2))
    assert len(loader) == 4
    iter(loader)  # an iterator that is never used does not use up the position
    assert [batch.start for batch in loader] == [6, 9]
    assert [batch.start for batch in loader] == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 10, "batch_size": 2}, "was written with batch_size 3, this run has 2; its position counts batches"),
        ({"n": 5}, "contains 6 edits, this edit set only has 5; resume with the edit set, limit and order"),
        (
            {"n": 10, "name": "X"},
            "6 edits are not the first 6 of this edit set; resume with the edit set, order and seed",
        ),
    ],
)
def test_another_stream_is_refused(arguments, message):
    with pytest.raises(EditError, match=message):
        resumed(state(10, 2), **arguments)


def test_an_incomplete_last_batch_cannot_be_filled_up():
    with pytest.raises(EditError, match="incomplete end of a stream of 10 edits, and this edit set goes on to 12"):
        resumed(state(10, 4), 12)
