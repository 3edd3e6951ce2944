"""The parts of every family: found, oriented, and written into where the model really reads them."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from lit_edit.anatomy import Anatomy, hidden_of
from lit_edit.errors import EditError
from lit_edit.passes.forward import reading
from tests.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[5, 17, 300, 42, 7, 99, 180]])


@pytest.fixture(scope="module", params=FAMILIES)
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


def seen(anatomy, layer):
    """Input and output of a down-projection over all positions."""
    kept = []
    with reading(anatomy.down(layer), kept.append, lambda x: kept.append(x.clone())):  # Falcon adds to it in place
        anatomy.model(IDS, use_cache=False)
    return kept[0].flatten(0, -2), kept[1].flatten(0, -2)  # OPT flattens rows and positions before its MLP


def test_weight_is_oriented_as_y_is_w_times_k(anatomy):
    for layer in range(len(anatomy.blocks)):
        keys, outputs = seen(anatomy, layer)
        weight = anatomy.weight(layer)
        assert weight.shape == (anatomy.d_model, anatomy.d_inner) == (outputs.shape[1], keys.shape[1])
        bias = getattr(anatomy.down(layer), "bias", None)
        expected = keys @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(expected, outputs, rtol=1e-4, atol=1e-5)


def test_the_view_writes_into_the_named_parameter(anatomy):
    parameter = dict(anatomy.model.named_parameters())[anatomy.weight_name(1)]
    before, logits = parameter.clone(), anatomy.model(IDS).logits
    anatomy.weight(1)[3, 5] += 1.0
    assert int((parameter != before).sum()) == 1
    assert not torch.equal(anatomy.model(IDS).logits, logits)
    parameter.copy_(before)


def test_block_outputs_are_what_was_found(anatomy):
    kinds = []
    handles = [b.register_forward_hook(lambda _m, _a, out: kinds.append(isinstance(out, tuple))) for b in anatomy.blocks]
    anatomy.model(IDS)
    for handle in handles:
        handle.remove()
    assert kinds == [anatomy.tuple_output] * len(anatomy.blocks)


def test_parts_around_the_blocks(anatomy):
    assert anatomy.dtype == torch.float32 and anatomy.device.type == "cpu"
    if anatomy.final_norm is None:  # no norm under a name that is known: only where nobody listed the family
        assert anatomy.model.config.model_type == "mpt"
        return
    kept = []
    with reading(anatomy.head, kept.append, None), reading(anatomy.final_norm, None, kept.append):
        anatomy.model(IDS)
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)  # the head reads what the final norm gives


def test_pull_back_makes_the_wanted_change_of_the_residual(anatomy):
    """To first order in its size, and up to the part along the norm's input that rescaling takes away again."""
    layer = 1
    outputs = []
    with reading(anatomy.down(layer), None, lambda x: outputs.append(x.flatten(0, -2).clone())):
        before = residual(anatomy, layer)
    wanted = 1e-3 * torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    if anatomy.after_mlp_name is not None:
        gain = anatomy.blocks[layer].get_submodule(anatomy.after_mlp_name)(torch.ones(1, before.shape[1]))
        # The norm cannot move its output along its own input: ask for nothing there.
        along = outputs[0] / gain
        wanted = wanted - along * (wanted * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True)
    change = anatomy.pull_back(layer, outputs[0], wanted)
    handle = anatomy.down(layer).register_forward_hook(lambda _m, _a, out: out + change)
    got = residual(anatomy, layer) - before
    handle.remove()
    assert float((got - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_pull_back_counts_the_epsilon_where_the_mlp_writes_little(scale):
    model = tiny_model("gemma2")
    model.model.layers[1].mlp.down_proj.weight.mul_(scale)
    anatomy = Anatomy.of(model)
    norm = model.model.layers[1].post_feedforward_layernorm
    outputs = scale * 0.3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    change = 1e-3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    moved = norm(outputs + 1e-2 * anatomy.pull_back(1, outputs, change)) - norm(outputs)
    # Along its own input the norm gives less than it is asked for: elsewhere all of it.
    across = moved - _along(moved, norm(outputs), norm)
    wanted = 1e-2 * (change - _along(change, norm(outputs), norm))
    assert float((across - wanted).norm() / wanted.norm()) < 2e-2


def _along(change, output, norm):
    """The part of a change along the norm's output, both as seen before the gain."""
    gain = norm(torch.ones(1, 32))
    x, y = change / gain, output / gain
    return gain * y * (x * y).sum(1, keepdim=True) / y.square().sum(1, keepdim=True)


def residual(anatomy, layer):
    kept = []
    with reading(anatomy.blocks[layer], None, lambda x: kept.append(x[0].clone())):
        anatomy.model(IDS)
    return kept[0]


def test_square_matrices_are_oriented_by_type():
    model = tiny_model("gpt2", n_inner=32)
    anatomy = Anatomy.of(model)
    keys, outputs = seen(anatomy, 0)
    assert anatomy.weight(0).shape == (32, 32)
    torch.testing.assert_close(keys @ anatomy.weight(0).T + anatomy.down(0).bias, outputs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(keys @ anatomy.weight(0) + anatomy.down(0).bias, outputs, atol=1e-2)


def test_a_family_nobody_listed_is_found_by_looking():
    assert Anatomy.of(tiny_model("mpt")).down_name == "ffn.down_proj"


def test_training_mode_survives_the_look():
    model = tiny_model("llama").train()
    Anatomy.of(model)
    assert model.training and model.model.layers[0].training
    assert not any(m._forward_hooks for m in model.modules())


def test_an_encoder_and_an_encoder_decoder_are_refused():
    bert = AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    t5 = AutoConfig.for_model("t5", d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=8, vocab_size=100)
    for model in (AutoModel.from_config(bert), AutoModelForSeq2SeqLM.from_config(t5)):
        with pytest.raises(EditError, match="not a causal language model") as caught:
            Anatomy.of(model)
        assert "\n" not in str(caught.value)


def test_an_encoder_with_a_masked_head_is_refused():
    from transformers import AutoModelForMaskedLM

    config = AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(EditError):
        Anatomy.of(AutoModelForMaskedLM.from_config(config))


@pytest.mark.parametrize(("layers", "message"), [([], "no layers"), ([1, 1], "twice"), ([0, 3], "layer 3"), ([-1], "layer -1")])
def test_layers_that_do_not_exist(layers, message):
    with pytest.raises(EditError, match=message):
        Anatomy.of(tiny_model("gpt2")).check_layers(layers)


def test_layers_come_back_in_order():
    assert Anatomy.of(tiny_model("gpt2")).check_layers([2, 0]) == (0, 2)


def test_hidden_of_both_kinds():
    x = torch.ones(1)
    assert hidden_of((x, None)) is x and hidden_of(x) is x
