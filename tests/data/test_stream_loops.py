"""What Lightning's loops see of a stream."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from numbered import Facts, Probe, subjects

from lit_edit.data import EditStream
from lit_edit.request import EditBatch


class Counting(LightningModule):
    """Counts its edits and notes what every loop shows it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.edits = 0
        self.validations, self.items, self.tested, self.predicted = [], [], [], []

    def setup(self, stage):
        self.trainer.datamodule.edited = lambda: self.edits

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, EditBatch)
        self.edits += len(batch)
        return self.weight.sum()

    def on_validation_epoch_start(self):
        self.validations.append([])
        self.items.append([])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        seen = self.items if dataloader_idx else self.validations
        seen[-1].extend(batch if dataloader_idx else subjects(batch.requests))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.tested.extend(batch if dataloader_idx else subjects(batch.requests))

    def predict_step(self, batch, batch_idx):
        self.predicted.extend(subjects(batch.requests))


def trainer(folder, **arguments):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": folder, **quiet, **arguments})


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_validation_sees_the_edits_made_so_far(tmp_path, sanity):
    module = Counting()
    stream = EditStream(source=Facts(10), batch_size=2, probes=[Probe(3)], review=5, probe_batch_size=2)
    trainer(tmp_path, val_check_interval=2, num_sanity_val_steps=sanity).fit(module, datamodule=stream)
    if sanity:  # before the first edit there is nothing to score again, but the probes are tried
        assert module.validations.pop(0) == []
        assert module.items.pop(0) == [0, 1, 2]
    assert module.validations == [["S0", "S1", "S2", "S3"], ["S0", "S1", "S3", "S5", "S7"]]
    assert module.items == [[0, 1, 2]] * 2
    assert module.edits == 10


@pytest.mark.filterwarnings("ignore")
def test_validation_with_a_limit_of_batches_and_a_progress_bar(tmp_path, capsys):
    module = Counting()
    stream = EditStream(source=Facts(10), batch_size=5, probes=[Probe(3)], probe_batch_size=2, scored_at_once=2)
    trainer(tmp_path, val_check_interval=1, num_sanity_val_steps=0, limit_val_batches=1, enable_progress_bar=True).fit(
        module, datamodule=stream
    )
    assert module.validations == [["S0", "S1"]] * 2
    assert module.items == [[0, 1]] * 2


@pytest.mark.filterwarnings("ignore")
def test_the_other_loops(tmp_path):
    module = Counting()
    stream = EditStream(source=Facts(10), probes=[Probe(3)], review=2)
    once = trainer(tmp_path)
    once.validate(module, datamodule=stream)
    assert module.validations == [[]]  # this module has edited nothing
    assert module.items == [[0, 1, 2]]
    once.test(module, datamodule=stream)
    assert module.tested == [*(f"S{i}" for i in range(10)), 0, 1, 2]
    once.predict(module, datamodule=stream)
    assert module.predicted == [f"S{i}" for i in range(10)]
