"""MEND on tiny random models: the editor, and the file of the hyper-network that it uses."""

from typing import Any

import pytest
import torch
from mending import SHAPES, I, O, disturbed, model, ready, requests, tokens
from safetensors.torch import save_file
from tiny import normal

from lit_edit.anatomy import Anatomy
from lit_edit.editors.mend import MEND
from lit_edit.errors import EditError
from lit_edit.mend.data import answer_row
from lit_edit.mend.file import Trained, load_network, save_network, weight_hash
from lit_edit.mend.network import HyperNetwork
from lit_edit.mend.training import changed
from lit_edit.passes.gradients import Answers, capture
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench


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
