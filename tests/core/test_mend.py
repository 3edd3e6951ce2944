"""MEND: the hyper-network, its file, its training and the editor that uses it, on tiny random models."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from stream import ANSWERS, NAMES
from tiny import normal, save_tiny, tiny_model, tiny_tokenizer

from lit_edit.anatomy import Anatomy
from lit_edit.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.corpus import Corpus
from lit_edit.data import FactSource
from lit_edit.editors.mend import MEND
from lit_edit.errors import EditError
from lit_edit.gradients import Answers, Captured, capture
from lit_edit.mend.data import PairData, PairLoader, answer_row
from lit_edit.mend.file import Trained, load_network, save_network, weight_hash
from lit_edit.mend.network import HyperNetwork, RunningNorm, joined
from lit_edit.mend.training import MendTrainer, changed
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench

O, I = 6, 10  # noqa: E741
SHAPES = {1: (O, I), 2: (O, I)}


def tokens(count: int, seed: int = 0) -> Captured:
    return Captured(normal(count, I, seed=seed).float() + 0.5, normal(count, O, seed=seed + 50).float() * 0.01)


def ready(**options: Any) -> HyperNetwork:
    """An untrained network whose normaliser has seen two layers."""
    network = HyperNetwork(SHAPES, rank=4, **options)
    network.observe({1: tokens(40, 1), 2: tokens(30, 2)})
    return network.eval()


def disturbed(**options: Any) -> HyperNetwork:
    """One in which every parameter counts."""
    network = ready(**options)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=index + 7).float())
    return network


# ---------------------------------------------------------------------------------------------------- the network


def test_the_untrained_network_is_the_identity_on_standardised_factors():
    network = ready()
    x, g = network.factors(2, tokens(5, 3))
    seen = torch.cat([joined(tokens(40, 1)), joined(tokens(30, 2))]).double()
    expected = (joined(tokens(5, 3)) - seen.mean(0)) / (seen.std(0) + 1e-7)
    torch.testing.assert_close(torch.cat([x, g], 1).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_blocks_are_the_published_formula():
    network = disturbed()
    x, g = network.factors(2, tokens(5, 3))
    h = network.transforms[f"{O}x{I}"].norm(joined(tokens(5, 3)))
    for block in network.transforms[f"{O}x{I}"].blocks:
        inner = (block.second_FR @ (block.first_RF @ h.T)).T + block.bias_F
        h = torch.relu(block.scale_PF[1] * inner + block.shift_PF[1]) + h
    torch.testing.assert_close(torch.cat([x, g], 1), h)
    other = network.factors(1, tokens(5, 3))
    assert not torch.allclose(other[0], x), "layers of one shape share the network, but not scale and shift"


def test_what_starts_at_zero_still_learns():
    network = ready()
    x, g = network.factors(1, tokens(5, 3))
    (x.square().sum() + g.sum()).backward()
    block = network.transforms[f"{O}x{I}"].blocks[0]
    assert block.second_FR.grad.abs().sum() > 0 and block.shift_PF.grad[0].abs().sum() > 0


@pytest.mark.parametrize("sizes", [(1, 1), (7, 1, 30), (100,)])
def test_the_streamed_norm_is_that_of_everything_at_once(sizes):
    blocks = [1e3 + normal(size, 5, seed=index) for index, size in enumerate(sizes)]
    norm = RunningNorm(5)
    for block in blocks:
        norm.update(block)
    norm.update(torch.zeros(0, 5))
    every = torch.cat(blocks)
    torch.testing.assert_close(norm.mean_F, every.mean(0))
    torch.testing.assert_close(norm.deviation_F, every.std(0), rtol=1e-9, atol=0)
    assert norm.count == len(every)


def test_the_norm_needs_two_tokens_and_moves_in_training_only():
    network = HyperNetwork(SHAPES, rank=4)
    with pytest.raises(EditError, match="has seen 1 tokens"):
        network.train().delta(1, tokens(1))
    network.delta(1, tokens(4))
    assert network.tokens_seen == 5
    network.eval().delta(1, tokens(4))
    assert network.tokens_seen == 5


def test_tokens_without_input_or_gradient_are_dropped():
    network, some = disturbed(), tokens(6)
    silent = Captured(some.inputs_TI.clone(), some.gradients_TO.clone())
    silent.inputs_TI[2], silent.gradients_TO[4] = 0.0, 0.0
    silent.inputs_TI[0, 0] = 0.0
    left, right = network.delta(1, silent).factors
    assert left.shape == (O, 4) and right.shape == (4, I)
    kept = Captured(silent.inputs_TI[[0, 1, 3, 5]], silent.gradients_TO[[0, 1, 3, 5]])
    torch.testing.assert_close(network.delta(1, silent).dense(), network.delta(1, kept).dense())
    nothing = Captured(some.inputs_TI, torch.zeros(6, O))
    assert network.delta(1, nothing).dense().abs().sum() == 0


def test_the_thin_change_is_the_sum_over_tokens_downhill():
    network = disturbed(edit_lr=1e-2)
    x, g = network.factors(2, tokens(5, 3))
    dense = sum(-network.rates_P[1] * torch.outer(g[t], x[t]) for t in range(5))
    delta = network.delta(2, tokens(5, 3))
    assert delta.is_low_rank
    torch.testing.assert_close(delta.dense(), dense)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"rank": 0}, "the rank of the hyper-network is 0"), ({"blocks": 0}, "the blocks"), ({"edit_lr": 0.0}, "edit_lr is 0"),
    ({"shapes": {}}, "no layers"),
])  # fmt: skip
def test_settings_out_of_range_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        HyperNetwork(**{"shapes": SHAPES, **options})


# ---------------------------------------------------------------------------------------------------- on a model


def model(family: str = "gpt2") -> tuple[Anatomy, Encoder]:
    anatomy = Anatomy.of(tiny_model(family))
    return anatomy, Encoder(tiny_tokenizer(), anatomy.positions)


def requests(count: int) -> list[EditRequest]:
    """Facts about different people, each with two paraphrases."""
    people = [f"{first} {last}" for first, last in itertools.product(NAMES, ("Lovelace", "Curie", "Berlin", "Sony", "Tower"))]
    return [
        EditRequest(
            "{} was born in", person, ANSWERS[i % 4], ANSWERS[(i + 1) % 4], (f"The home of {person} is", f"{person} is from")
        )
        for i, person in enumerate(people[:count])
    ]


def bench(anatomy: Anatomy, encoder: Encoder, layers: tuple[int, ...], **options: Any) -> Workbench:
    weights = {layer: anatomy.weight(layer).float().clone() for layer in layers}
    return Workbench(anatomy, layers, [], weights.__getitem__, weights.__getitem__, TargetOptions(**options), encoder.pad)


def warmed(anatomy: Anatomy, encoder: Encoder, layers: tuple[int, ...], edit_lr: float) -> HyperNetwork:
    network = HyperNetwork({layer: tuple(anatomy.weight(layer).shape) for layer in layers}, rank=8, edit_lr=edit_lr)
    for request in requests(20):
        network.observe(
            capture(anatomy, [answer_row(encoder, request.text, request.target_new)], layers, encoder.pad, False)[0]
        )
    return network.eval()


def saved(path, anatomy: Anatomy, network: HyperNetwork) -> str:
    save_network(path, network, Trained({layer: weight_hash(anatomy.weight(layer)) for layer in network.layers}, "tiny"))
    return str(path)


def editor(path: str, anatomy: Anatomy, layers: tuple[int, ...], **options: Any) -> MEND:
    found = MEND(path, **options)
    for layer in layers:
        found.allocate(layer, *anatomy.weight(layer).shape)
    for layer in layers:
        found.prepare(layer, anatomy.weight(layer).float(), None)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_untrained_network_lowers_the_loss_of_the_edit_and_the_released_sign_raises_it(family):
    anatomy, encoder = model(family)
    for rate, lower in ((1e-5, True), (-1e-5, False)):
        network = warmed(anatomy, encoder, (1, 2), rate)
        for request in requests(10):
            row = answer_row(encoder, request.text, request.target_new)
            captured, before = capture(anatomy, [row], (1, 2), encoder.pad, answers_only=False)
            with changed(anatomy, {layer: network.delta(layer, captured[layer]) for layer in (1, 2)}), torch.no_grad():
                after = float(Answers.of([row], encoder.pad, anatomy.device).losses(anatomy).mean())
            assert (after < before) is lower


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_the_editor_writes_what_training_evaluates(family, tmp_path):
    anatomy, encoder = model(family)
    network = warmed(anatomy, encoder, (0, 2), 3e-4)
    with torch.no_grad():
        for index, parameter in enumerate(network.transforms.parameters()):
            parameter.add_(0.05 * normal(*parameter.shape, seed=index).float())
    mend = editor(saved(tmp_path / "n.safetensors", anatomy, network), anatomy, (0, 2))
    rows = [mend.rows(encoder, request, ()) for request in requests(3)]
    desk = bench(anatomy, encoder, (0, 2))
    captured, loss = capture(anatomy, [row.rewriting[0] for row in rows], (0, 2), encoder.pad, answers_only=False)
    deltas = {layer: network.delta(layer, captured[layer]) for layer in (0, 2)}
    asked = Answers.of([row.rewriting[0] for row in rows], encoder.pad, anatomy.device)
    with torch.no_grad():
        with changed(anatomy, deltas):
            during = asked.losses(anatomy)
        mend.change(desk, rows, None)
        desk.finish()
        written = asked.losses(anatomy)
        desk.clear()
        assert not torch.allclose(asked.losses(anatomy), written, atol=1e-3)
    torch.testing.assert_close(written, during, rtol=1e-4, atol=1e-5)
    assert desk.scalars["mend/loss"] == pytest.approx(loss, rel=1e-5)
    for layer in (0, 2):
        torch.testing.assert_close(desk.changes[layer], deltas[layer].dense().detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction", ["batch", "request"])
def test_mini_batches_and_reduction(reduction, tmp_path):
    anatomy, encoder = model()
    path = saved(tmp_path / "n.safetensors", anatomy, warmed(anatomy, encoder, (0, 1), 3e-4))
    mend = editor(path, anatomy, (0, 1), reduction=reduction)
    rows = [mend.rows(encoder, request, ()) for request in requests(5)]
    assert len({len(row.rewriting[0].labels) for row in rows}) > 1, "answers of different lengths, or nothing would show"

    def written(some, **options):
        desk = bench(anatomy, encoder, (0, 1), **options)
        mend.change(desk, some, None)
        desk.clear()
        return desk.changes

    whole, parts = written(rows, requests_at_once=5), written(rows, requests_at_once=2)
    alone = [written([row]) for row in rows]
    for layer in (0, 1):
        torch.testing.assert_close(parts[layer], whole[layer], rtol=1e-4, atol=1e-7)
        summed = sum(changes[layer] for changes in alone)
        assert torch.allclose(whole[layer], summed, rtol=1e-3, atol=1e-6) is (reduction == "request")


def test_scale_is_a_factor(tmp_path):
    anatomy, encoder = model()
    path = saved(tmp_path / "n.safetensors", anatomy, warmed(anatomy, encoder, (1,), 3e-4))
    changes = []
    for scale in (1.0, 0.5):
        mend, desk = editor(path, anatomy, (1,), scale=scale), bench(anatomy, encoder, (1,))
        mend.change(desk, [mend.rows(encoder, requests(1)[0], ())], None)
        desk.clear()
        changes.append(desk.changes[1])
    torch.testing.assert_close(changes[1], changes[0] / 2)


def test_an_edit_needs_no_subject(tmp_path):
    _, encoder = model()
    row = MEND("none").rows(encoder, EditRequest("The capital of France is", "", "Rome"), ())
    assert len(row.rewriting) == 1 and row.rewriting[0].labels


# ---------------------------------------------------------------------------------------------------- its file


def test_a_network_comes_back_as_it_was_written(tmp_path):
    network = disturbed()
    trained = Trained({1: "a", 2: "b"}, "some model", {"edit_nll": 0.5})
    save_network(tmp_path / "deep" / "n.safetensors", network, trained)
    again, said = load_network(tmp_path / "deep" / "n.safetensors")
    assert said == trained and again.layers == network.layers and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for layer in SHAPES:
        assert torch.equal(again.delta(layer, tokens(5, 3)).dense(), network.delta(layer, tokens(5, 3)).dense())


def test_a_missing_damaged_or_foreign_file_is_told(tmp_path):
    with pytest.raises(EditError, match=r"there is no hyper-network .*train-mend"):
        MEND(str(tmp_path / "none.safetensors")).allocate(0, O, I)
    path = tmp_path / "n.safetensors"
    save_network(path, ready(), Trained({1: "a", 2: "b"}))
    content = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[-3] ^= 0x40
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    (tmp_path / "text.safetensors").write_text("no network")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, sentence in {
        "cut": "is damaged",
        "flipped": "checksum",
        "text": "is damaged",
        "other": "no hyper-network",
    }.items():
        with pytest.raises(EditError, match=sentence):
            MEND(str(tmp_path / f"{name}.safetensors")).allocate(1, O, I)


def test_a_network_of_another_model_is_refused(tmp_path):
    anatomy, encoder = model()
    path = saved(tmp_path / "n.safetensors", anatomy, warmed(anatomy, encoder, (0, 1), 1e-4))
    editor(path, anatomy, (0, 1))
    with pytest.raises(EditError, match=r"for the layers \[0, 1\] of tiny, not for layer 2"):
        editor(path, anatomy, (0, 1, 2))
    with pytest.raises(EditError, match="layer 1 is not edited here"):
        editor(path, anatomy, (0,))
    with pytest.raises(EditError, match="32 x 128 in layer 0, and this model's is 32 x 48"):
        editor(path, model("llama")[0], (0, 1))
    found = MEND(path)
    for layer in (0, 1):
        found.allocate(layer, 32, 128)
    with pytest.raises(EditError, match="trained on other weights of layer 0"):
        found.prepare(0, anatomy.weight(0) * 1.001, None)


@pytest.mark.parametrize(
    ("options", "sentence"), [({"scale": 0.0}, "scale is 0"), ({"reduction": "sum"}, "reduction is 'sum'")]
)
def test_editor_settings_out_of_range_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        MEND("n.safetensors", **options)


def test_the_network_stays_out_of_checkpoints(tmp_path):
    anatomy, encoder = model()
    mend = editor(saved(tmp_path / "n.safetensors", anatomy, warmed(anatomy, encoder, (0, 1), 1e-4)), anatomy, (0, 1))
    assert not mend.state_dict() and not list(mend.parameters()) and not list(mend.buffers())


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
