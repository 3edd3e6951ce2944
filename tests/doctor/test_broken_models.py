"""Models broken on purpose, one for every check that looks at the model: each is seen to find what it is there to find."""

import pytest
import torch
from torch import nn

from lit_edit.doctor import shape
from lit_edit.doctor.finding import Verdict
from lit_edit.doctor.published import Published
from tests.doctor.cases import all_checks, finding, opened, with_forward, with_logits, with_output
from tests.doctor.test_broken_tokenizers import BROKEN as TOKENIZERS
from tests.tiny import normal, tiny_model

FOUR = {"num_hidden_layers": 4}


def llama(**overrides):
    return tiny_model("llama", **overrides)


def saved_as_a_classifier(_):
    model = llama()
    model.config.architectures = ["LlamaForSequenceClassification"]
    return opened(model)


def a_block_without_mlp(_):
    model = llama(**FOUR)
    model.model.layers[2].mlp = nn.Identity()
    return opened(model, layers=[1, 2])


def a_scaled_down_projection(_):
    model = llama()
    with_output(model.model.layers[0].mlp.down_proj, lambda x: 2 * x)
    return opened(model)


def a_layer_norm_behind_the_mlp(_):
    model = tiny_model("gemma2")
    model.model.layers[0].post_feedforward_layernorm = nn.LayerNorm(32)
    return opened(model, layers=[0])


def a_scale_before_the_head(_):
    model = llama()
    model.lm_head.register_forward_pre_hook(lambda _m, args: (2 * args[0],))
    return opened(model)


def an_untied_copy_of_the_embeddings(_):
    model = llama(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    return opened(model)


def no_cache(_):
    def forget(run, _kwargs):
        output = run()
        output.past_key_values = None
        return output

    return opened(with_forward(llama(), forget))


class _Matrix(nn.Module):
    """A projection that is neither Linear nor Conv1D."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, x):
        return x @ self.weight.T


def an_mlp_of_its_own(_):
    model = llama()
    for block in model.model.layers:
        block.mlp.gate_proj, block.mlp.up_proj = _Matrix(block.mlp.gate_proj), _Matrix(block.mlp.up_proj)
    return opened(model)


def a_parameter_in_another_dtype(_):
    model = llama()
    model.extra = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16), requires_grad=False)
    return opened(model)


def a_full_device(monkeypatch):
    monkeypatch.setattr(shape, "_free", lambda device: 1000)
    return opened()


def masked_padding_counts(_):
    def leak(logits, kwargs):
        mask = kwargs.get("attention_mask")
        hidden = 0 if mask is None or mask.dim() != 2 else (mask == 0).sum(1)[:, None, None]
        return logits + 0.1 * hidden * torch.linspace(-1, 1, logits.shape[-1])

    return opened(with_logits(llama(), leak))


def length_counts(_):
    return opened(with_logits(llama(), lambda x, _: x + 0.1 * x.shape[1] * torch.linspace(-1, 1, x.shape[-1])))


def positions_are_ignored(_):
    def ignore(run, kwargs):
        return run(position_ids=None)

    return opened(with_forward(tiny_model("gpt2"), ignore))


def the_last_block_returns_a_tuple(_):
    model = llama()
    with_output(model.model.layers[-1], lambda x: (x,))
    norm = model.model.norm.forward
    model.model.norm.forward = lambda x: norm(x[0] if isinstance(x, tuple) else x)
    return opened(model)


def an_mlp_that_goes_round_its_down_projection(_):
    model = llama(**FOUR)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) @ mlp.down_proj.weight.T
    return opened(model, layers=[1, 2])


def a_scaled_mlp(_):
    model = llama(**FOUR)
    with_output(model.model.layers[1].mlp, lambda x: 0.5 * x)
    return opened(model, layers=[1, 2])


def looks_ahead(_):
    model = llama()
    with_output(model.model.layers[1], lambda x: x + 0.1 * x.mean(1, keepdim=True) if x.shape[1] > 2 else x)
    return opened(model)


def noisy(_):
    model, generator = llama(), torch.Generator().manual_seed(0)

    def noise(x):
        return x + 0.1 * torch.randn(x.shape, generator=generator) if x.shape[1] > 2 else x

    with_output(model.model.layers[0], noise)
    return opened(model)


def rows_of_a_batch_meet(_):
    model = llama()
    with_output(model.model.layers[0], lambda x: x + 0.1 * x.mean(0, keepdim=True))
    return opened(model, layers=[0, 1])


def something_is_added_behind_a_block(_):
    model = llama()
    model.model.layers[0].register_forward_hook(lambda _m, _a, output: output + 1.0)
    return opened(model, layers=[0])


def logits_are_centred_over_positions(_):
    return opened(with_logits(llama(), lambda x, _: x - x.mean(1, keepdim=True) if x.shape[1] > 2 else x))


def a_window_shorter_than_a_row(_):
    return opened(tiny_model("mistral"))


def a_window_that_the_trial_missed(_):
    return opened(tiny_model("mistral"), packs=True)


def _forgetting(run, kwargs):
    """What was cached is lost, its length is not."""
    for part in getattr(kwargs.get("cache", kwargs.get("past_key_values")), "layers", []):
        if part.is_initialized and part.keys.numel():
            part.keys = torch.zeros_like(part.keys)
    return run()


def a_cache_that_forgets(_):
    return opened(with_forward(llama(), _forgetting))


def a_cache_that_forgets_unnoticed(_):
    return opened(with_forward(llama(), _forgetting), continues=True)


def no_attention_behind_the_edit(_):
    model = llama(**FOUR)
    for block in model.model.layers[1:]:
        with_output(block.self_attn, lambda out: (torch.zeros_like(out[0]), *out[1:]))
    return opened(model, layers=[0])


def a_weight_that_is_not_read(_):
    model = llama()
    down = model.model.layers[0].mlp.down_proj
    fixed = down.weight.clone()
    down.forward = lambda x: x @ fixed.T
    return opened(model, layers=[0])


def weights_finer_than_float32(_):
    model = llama().double()
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.add_(1e-12 * normal(*weight.shape))
    return opened(model, layers=[0])


def a_model_that_counts(_):
    calls = []

    def count(logits, _kwargs):
        calls.append(1)
        return logits + 1e-3 * len(calls)

    return opened(with_logits(llama(), count))


def a_nan_weight(_):
    case = opened()
    case.model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    return case


def a_part_elsewhere(_):
    case = opened()
    case.model.lm_head.to("meta")
    return case


def infinite_logits(_):
    def overflow(logits, _kwargs):
        return torch.where(torch.arange(logits.shape[1])[:, None] > 1, torch.inf, logits)

    return opened(with_logits(llama(), overflow))


def huge_hidden_states(_):
    model = llama()
    model.model.embed_tokens.weight.mul_(3e4)
    return opened(model.half())


def no_float64(monkeypatch):
    def solve(*_args, **_kwargs):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr("lit_edit.doctor.numbers.solve", solve)
    return opened()


def another_choice_was_published(monkeypatch):
    theirs = Published("Llama 3 tiny", "llama", 3, 32, 48, (1,), "a paper")
    monkeypatch.setattr(shape, "published", lambda *_: theirs)
    return opened()


BROKEN = {
    ("parts", "class"): [(saved_as_a_classifier, "note", "saved as LlamaForSequenceClassification")],
    ("parts", "blocks"): [(a_block_without_mlp, "off", "only layers 0 to 1, 3")],
    ("parts", "down-projection"): [(a_scaled_down_projection, "off", "not W k + b")],
    ("parts", "norm behind MLP"): [(a_layer_norm_behind_the_mlp, "off", "no RMS norm")],
    ("parts", "final norm"): [(a_scale_before_the_head, "note", "reads something else")],
    ("parts", "head"): [(an_untied_copy_of_the_embeddings, "note", "tie_word_embeddings = True")],
    ("parts", "logits"): [(lambda _: opened(with_logits(llama(), lambda x, _: x.sin())), "note", "way of the model's own")],
    ("shape", "attention"): [(no_cache, "note", "no attention that keeps")],
    ("shape", "MLP"): [(an_mlp_of_its_own, "note", "not recognised")],
    ("shape", "vocabulary"): [(lambda _: opened(llama(vocab_size=1000)), "note", "ids up to 319")],
    ("shape", "positions"): [(lambda _: opened(llama(max_position_embeddings=40)), "note", "40")],
    ("shape", "dtype"): [(a_parameter_in_another_dtype, "note", "1 in bfloat16")],
    ("shape", "memory"): [(a_full_device, "off", "has 0.0 MiB left")],
    ("shape", "layers"): [
        (lambda _: opened(layers=[1, 2]), "off", "the last one is the last block"),
        (lambda _: opened(llama(num_hidden_layers=1)), "cannot", "single block"),
        (another_choice_was_published, "note", "published: 1 for Llama 3 tiny (a paper)"),
    ],
    ("padding", "right, masked"): [(masked_padding_counts, "cannot", "masked padding on the right")],
    ("padding", "right, seen"): [(length_counts, "cannot", "padding on the right")],
    ("padding", "left"): [(positions_are_ignored, "note", "not exact")],
    ("padding", "generation"): [(positions_are_ignored, "note", "moves with padding")],
    ("inside", "block output"): [(the_last_block_returns_a_tuple, "off", "layers 2 return something else")],
    ("inside", "hooks"): [(an_mlp_that_goes_round_its_down_projection, "off", "ran 0 times")],
    ("inside", "residual stream"): [(a_scaled_mlp, "off", "in layer 1, a wanted change arrives to 50.0%")],
    ("partial passes", "causal"): [(looks_ahead, "cannot", "sees what comes after it")],
    ("partial passes", "stopped early"): [(noisy, "cannot", "the output of block 0")],
    ("partial passes", "in a batch"): [(rows_of_a_batch_meet, "cannot", "in a batch")],
    ("partial passes", "started late"): [(something_is_added_behind_a_block, "cannot", "started behind block 0")],
    ("partial passes", "picked logits"): [(logits_are_centred_over_positions, "cannot", "at some positions only")],
    ("partial passes", "packs"): [
        (a_window_shorter_than_a_row, "note", "not used: off by"),
        (a_window_that_the_trial_missed, "off", "used, but off by"),
    ],
    ("partial passes", "continuation"): [
        (a_cache_that_forgets, "note", "not used: off by"),
        (a_cache_that_forgets_unnoticed, "off", "used behind block 0, but off by"),
    ],
    ("edit and undo", "target"): [(no_attention_behind_the_edit, "off", "at the target")],
    ("edit and undo", "written"): [(a_weight_that_is_not_read, "off", "0% of the change")],
    ("edit and undo", "weights undone"): [(weights_finer_than_float32, "off", "weights differ")],
    ("edit and undo", "logits undone"): [(a_model_that_counts, "off", "logits differ")],
    ("numbers", "weights"): [(a_nan_weight, "cannot", "NaN or Inf in model.layers.1.mlp.up_proj.weight (1 of them)")],
    ("numbers", "device"): [(a_part_elsewhere, "cannot", "spread over cpu, meta")],
    ("numbers", "logits"): [(infinite_logits, "cannot", "logits are NaN or Inf")],
    ("numbers", "hidden states"): [(huge_hidden_states, "off", "float16 holds 6.6e+04")],
    ("numbers", "precision"): [(lambda _: opened(llama().bfloat16()), "note", "bfloat16 shows changes")],
    ("numbers", "the same twice"): [(noisy, "off", "other logits the second time")],
    ("numbers", "float64"): [(no_float64, "cannot", "has no float64")],
}


def test_every_check_has_a_model_or_a_tokenizer_that_it_finds_fault_with():
    assert {*BROKEN, *TOKENIZERS} == set(all_checks())


@pytest.mark.parametrize(
    ("check", "broken", "verdict", "phrase"), [(check, *case) for check, cases in BROKEN.items() for case in cases]
)
def test_a_broken_model_is_found_out(check, broken, verdict, phrase, monkeypatch):
    found = finding(*check, broken(monkeypatch))
    assert (found.verdict, found.group, found.name) == (verdict, *check), found
    assert phrase in found.found, found
    assert found.advice.endswith("."), "and what to do about it"
    assert "could not be made" not in found.found


@pytest.mark.parametrize("check", BROKEN)
def test_a_healthy_model_is_not(check):
    model = tiny_model("gemma2") if check[1] == "norm behind MLP" else llama()
    assert finding(*check, opened(model)).verdict is Verdict.OK


def test_a_check_that_fails_itself_is_told_and_ends_nothing():
    case = opened()
    case.model.get_input_embeddings = None
    found = finding("shape", "vocabulary", case)
    assert found.verdict is Verdict.OFF and "could not be made (TypeError" in found.found
