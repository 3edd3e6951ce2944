"""Models that are broken on purpose, each a case that one check has to find fault with."""

import torch
from torch import nn

from lit_edit.doctor import shape
from lit_edit.doctor.published import Published
from tests.doctor.cases import opened, with_forward, with_logits, with_output
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


def generate_fails(_):
    def fail(*_args, **_kwargs):
        raise ValueError("no such cache")

    model = llama()
    model.generate = fail
    return opened(model)


def no_generate(_):
    model = llama()
    model.generate = None
    return opened(model)


def a_cache_that_fails(_):
    def fail(run, kwargs):
        if kwargs.get("use_cache"):
            raise ValueError("no such cache")
        return run()

    return opened(with_forward(llama(), fail))


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
