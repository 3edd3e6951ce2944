"""``lit-edit pretrain-facts`` on made-up facts: what it leaves behind, how it goes on, what it refuses."""

import json

import lightning as L
import pytest
import torch

from lit_edit.errors import EditError
from lit_edit.pretraining.cli import LastCheckpoint
from lit_edit.reference.cli import main
from lit_edit.reference.data import FactsData
from lit_edit.reference.measure import main as measure
from lit_edit.reference.pretrain import FactsPretrainer


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_training_ends_in_a_folder_with_weights_and_report(family, words, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    main(words(model__family=family))
    folder = tmp_path / "model"
    table = capsys.readouterr().out
    assert "6 of 6 steps" in table and "perplexity per token, wikitext2_valid.txt" in table and "| P1 |" in table
    assert (folder / "report.md").read_text() in table
    report = json.loads((folder / "report.json").read_text())
    assert report["recall"]["words_seen"]["n"] + report["recall"]["words_unseen"]["n"] == 20 * 3 + 20 * 2
    assert set(report["recall"]["relations"]["P1"]["templates"]) == {"{} lives in", "The home of {} is", "{}, who lives in"}
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert report["parameters"] == sum(p.numel() for p in net.parameters())
    assert str(tmp_path) not in (folder / "README.md").read_text(), "a card says nothing of the machine"


def test_what_is_stored_can_be_measured_again(words, folder, tmp_path, capsys):
    main(words())
    first = (tmp_path / "model/report.json").read_text()
    (tmp_path / "model/report.json").unlink()
    measure([str(tmp_path / "model"), "--data", str(folder)])
    assert (tmp_path / "model/report.json").read_text() == first
    with pytest.raises(EditError, match=r"holds no learned\.json"):
        measure([str(folder), "--data", str(folder)])


def test_a_resumed_training_gives_the_same_weights(words, tmp_path):
    main(words())
    weights = tmp_path / "model/model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    main(words(ckpt_path="last", seed_everything=0))  # from step 4 of 6
    assert weights.read_bytes() == whole
    main(words(seed_everything=1))
    assert weights.read_bytes() != whole


class Stop(L.Callback):
    """Stops a training after some steps, as a time limit does."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.after


def test_a_training_that_is_stopped_leaves_a_checkpoint_to_go_on_from(folder, tmp_path):
    def trained(path, *callbacks, start=None):
        L.seed_everything(0, verbose=False)
        data = FactsData(
            str(folder), vocabulary=600, tokenizer_characters=2000, batches=6, documents=24, row_length=64, held_out_text=None
        )
        module = FactsPretrainer(width=32, layers=2, heads=2, inner=64, written=(0,), warmup=2)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", limit_val_batches=0, callbacks=[*callbacks, LastCheckpoint(path, 100)], **quiet
        )
        trainer.fit(module, data, ckpt_path=start, weights_only=False)
        return trainer.global_step, module.net.state_dict()

    assert trained(tmp_path / "a.ckpt", Stop(3))[0] == 3
    steps, weights = trained(tmp_path / "b.ckpt", start=tmp_path / "a.ckpt")
    straight = trained(tmp_path / "c.ckpt")
    assert steps == straight[0] == 6 and not (tmp_path / "c.ckpt").exists()
    assert all(torch.equal(weights[name], value) for name, value in straight[1].items())


def test_the_auxiliary_loss_asks_for_all_that_is_true_and_nothing_else():
    module = FactsPretrainer()
    module.truth = torch.tensor([[0, 2], [1, -1]])
    right = torch.tensor([[50.0, -50.0, 50.0], [-50.0, 50.0, -50.0]])
    assert module.auxiliary_loss(right, torch.tensor([0, 1])).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() / 2)
    assert module.auxiliary_loss(-right, torch.tensor([0, 1])) > 50


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ckpt_path": "none.ckpt"}, "there is no checkpoint none.ckpt"),
        ({"ckpt_path": "last"}, "there is no checkpoint .*last.ckpt"),
        ({"checkpoint_every": 0}, "--checkpoint_every is 0"),
        ({"data__folder": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_mistakes_end_in_a_sentence(words, given, sentence):
    with pytest.raises(EditError, match=sentence):
        main(words(**given))
