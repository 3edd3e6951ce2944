"""Training MEND's hyper-network on tiny random models: what it learns, from which data, and how it goes on."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from mending import model, requests
from tiny import normal, save_tiny, tiny_model

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import Corpus
from lit_edit.data import FactSource
from lit_edit.errors import EditError
from lit_edit.mend.data import PairData, PairLoader, answer_row
from lit_edit.mend.file import load_network
from lit_edit.mend.network import HyperNetwork
from lit_edit.mend.training import MendTrainer
from lit_edit.passes.gradients import Captured
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

# ---------------------------------------------------------------------------------------------------- training


class Facts(FactSource):
    """Made-up facts about made-up people."""

    def __init__(self, count: int = 50) -> None:
        self.count = count

    def requests(self) -> list[EditRequest]:
        return requests(self.count)


class Words(Corpus):
    """Random tokens."""

    def identity(self) -> dict[str, Any]:
        return {"corpus": "words"}

    def token_rows(self, anatomy: Anatomy, encoder: Encoder) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(3)
        while True:
            yield torch.randint(2, 320, (12,), generator=generator).tolist()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp(request.param), request.param))


def train(
    folder: str, path, batches: int = 120, callbacks=(), ckpt_path=None, accumulate: int = 1, data=None, **options: Any
) -> MendTrainer:
    settings = {
        "layers": [1, 2], "corpus": Words(), "locality_texts": 60, "locality": 4, "lr": 3e-4, "lr_lr": 1e-3, "edit_lr": 1e-4,
        "warm_up": 20, "cedit": 1.0, "export_to": str(path), **options,
    }  # fmt: skip
    module = MendTrainer(folder, **settings)
    pairs = PairData(source=Facts(), validation=10, batches=batches, **(data or {}))
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=bool(callbacks), callbacks=list(callbacks),
        accumulate_grad_batches=accumulate, gradient_clip_val=100.0, plugins=[SafetensorsCheckpointIO()],
        default_root_dir=str(path.parent), val_check_interval=batches,
    )  # fmt: skip
    trainer.fit(module, datamodule=pairs, ckpt_path=ckpt_path)
    module.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return module


def test_training_improves_held_out_edits_and_locality_counts(folder, tmp_path):
    module = train(folder, tmp_path / "n.safetensors", cloc=5.0)
    before, after = module.before, module.after
    assert after["edit_nll"] < before["edit_nll"] - 0.4, "the trained network edits better than the untrained one"
    assert after["edit_nll"] < after["edit_nll_before"] - 0.4, "and better than no edit"
    assert after["paraphrase_accuracy"] > before["paraphrase_accuracy"] + 0.3
    assert after["edit_nll_before"] == before["edit_nll_before"], "the model itself never changes"
    assert module.logged["val/edit_nll"] == pytest.approx(after["edit_nll"], rel=1e-4)
    said = load_network(tmp_path / "n.safetensors")[1]
    assert said.measured["edit_nll"] == after["edit_nll"] and said.measured["edit_nll/untrained"] == before["edit_nll"]
    free = train(folder, tmp_path / "free.safetensors", cloc=0.0)
    assert free.after["locality_kl"] > 1.3 * after["locality_kl"]


def test_the_same_seed_gives_the_same_network_and_another_seed_another(tmp_path):
    folder = str(save_tiny(tmp_path / "model", "gpt2"))
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(folder, tmp_path / f"{name}.safetensors", batches=6, seed=seed)
    one, two, three = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two and one != three


def test_a_training_that_was_stopped_goes_on_to_the_same_network(tmp_path):
    folder = str(save_tiny(tmp_path / "model", "gpt2"))
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=2, save_top_k=-1)
    options = {"batches": 12, "accumulate": 2, "warm_up": 0, "data": {"edits": 2}}
    train(folder, tmp_path / "whole.safetensors", callbacks=[keep], **options)
    checkpoint = tmp_path / "kept" / "step=4.ckpt"
    assert not any(name.startswith("net.") for name in SafetensorsCheckpointIO().load_checkpoint(checkpoint)["state_dict"])
    train(folder, tmp_path / "resumed.safetensors", ckpt_path=str(checkpoint), **options)
    whole, resumed = (load_network(tmp_path / f"{name}.safetensors")[0].state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(EditError, match="on this model and these layers"):
        train(folder, tmp_path / "other.safetensors", ckpt_path=str(checkpoint), **options, layers=[0, 2])


def test_nothing_but_the_network_learns(tmp_path):
    folder = str(save_tiny(tmp_path / "model", "llama"))
    module = train(folder, tmp_path / "n.safetensors", batches=3)
    fresh = tiny_model("llama").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in module.net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.net.parameters())


# ---------------------------------------------------------------------------------------------------- its data


def pairs(**options: Any) -> PairData:
    data = PairData(**{"source": Facts(), "validation": 10, **options})
    data.setup()
    data.encode(model()[1])
    return data


def test_edits_are_split_by_subject_and_keep_apart_from_those_of_later():
    data = pairs(apart_from=Facts(15))
    prompts = [{pair.inner.ids for pair in part} for part in (data.training_pairs, data.validation_pairs)]
    later = {answer_row(model()[1], request.text, request.target_new).ids for request in requests(15)}
    assert [len(part) for part in prompts] == [25, 10]
    assert not prompts[0] & prompts[1] and not (prompts[0] | prompts[1]) & later


def test_batches_follow_from_the_seed_and_every_pass_sees_every_edit():
    data = pairs()
    loader = data.train_dataloader() if data.trainer else PairLoader(data.training_pairs, 40, 2, 1.0, 0)
    batches = list(loader)
    assert [batch.index for batch in batches] == list(range(40)) and batches[7] == loader.batch(7)
    drawn = [pair.inner.ids for batch in batches for pair in batch.pairs]
    assert len(set(drawn[:40])) == len(set(drawn[40:])) == 40 and drawn[:40] != drawn[40:]
    assert all(row in pair.paraphrases for batch in batches for row, pair in zip(batch.outer, batch.pairs, strict=True))
    plain = PairLoader(data.training_pairs, 10, 2, 0.0, 0)
    assert all(row == pair.inner for batch in plain for row, pair in zip(batch.outer, batch.pairs, strict=True))
    loader.load_state_dict({"position": 37})
    assert [batch.index for batch in loader] == [37, 38, 39]


@pytest.mark.parametrize(("options", "sentence"), [
    ({"validation": 50}, "no edit is left for training: of 50 edits 50 can be used"), ({"batches": 0}, "batches is 0"),
    ({"paraphrased": 1.5}, "paraphrased is 1.5"), ({"source": None}, "neither path nor source"),
])  # fmt: skip
def test_data_out_of_range_is_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        pairs(**options)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"locality": 0}, "locality is 0"), ({"locality_texts": 1}, "locality_texts is 1"), ({"cloc": -1.0}, "cloc is -1"),
    ({"lr": float("nan")}, "lr is nan"),
])  # fmt: skip
def test_training_settings_out_of_range_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        MendTrainer("nowhere", **options)


def test_the_divergence_is_that_of_the_distributions(tmp_path):
    module = MendTrainer(str(save_tiny(tmp_path, "gpt2")), layers=[1])
    module.configure_model()
    texts = [[5, 6, 7, 8], [9, 10]]
    delta = HyperNetwork({1: (32, 128)}, rank=4, edit_lr=0.01)
    delta.observe({1: Captured(normal(9, 128).float(), normal(9, 32, seed=1).float())})
    change = {1: delta.eval().delta(1, Captured(normal(3, 128).float(), normal(3, 32, seed=1).float()))}
    with torch.no_grad():
        found = module.divergence(change, texts)
        anatomy, expected = module.anatomy, []
        before = [anatomy.model(torch.tensor([text])).logits[0].log_softmax(-1) for text in texts]
        anatomy.weight(1).add_(change[1].dense())
        after = [anatomy.model(torch.tensor([text])).logits[0].log_softmax(-1) for text in texts]
        for p, q in zip(before, after, strict=True):
            expected += (p.exp() * (p - q)).sum(-1).tolist()
    assert len(expected) == 6 and sum(expected) > 0
    assert float(found) == pytest.approx(sum(expected) / 6, rel=1e-3)


def test_settings_that_do_not_fit_are_told(tmp_path):
    module = MendTrainer("nowhere")
    for options, sentence in (
        ({"world_size": 2}, "spans 2 processes"),
        ({"precision": "bf16-mixed"}, "precision is bf16-mixed"),
    ):
        module._trainer = SimpleNamespace(**{"world_size": 1, "precision": "32-true", **options})
        with pytest.raises(EditError, match=sentence):
            module.on_fit_start()
