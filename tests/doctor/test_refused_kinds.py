"""Models of a kind that cannot be edited, and code that comes with a model."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BartForConditionalGeneration

from lit_edit import ContinualEditor, EditError
from lit_edit.anatomy import Anatomy
from lit_edit.editors import MEMIT
from lit_edit.models.identity import load_pretrained
from tests.doctor.refusing import configured, refused
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}

# ------------------------------------------------------------------------------------------------ kinds


QUANTISED = {
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8"},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights(kind):
    sentence = refused(configured(quantization_config=QUANTISED[kind]))
    assert f"is quantised ({kind})" in sentence and "model.dequantize()" in sentence


def test_weights_kept_as_integers():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(EditError, match=r"keeps model.layers.1.mlp.up_proj.weight as int8"):
        Anatomy.of(model)


def test_an_encoder_decoder_of_which_half_would_load():
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    BartForConditionalGeneration(AutoConfig.for_model("bart", vocab_size=320, **sizes, **heads)).save_pretrained("bart")
    tiny_tokenizer().save_pretrained("bart")
    assert "bart is an encoder-decoder (bart), not a causal language model" in refused("bart")


def test_an_encoder():
    from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

    sizes = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    save_tiny("bert", "gpt2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # As usual they begin at 0.02, where a model this small hardly attends to anything.
        BertForMaskedLM(BertConfig(**sizes, initializer_range=0.2)).save_pretrained("bert")
    model, _ = load_pretrained("bert", None, torch.float32)
    with pytest.raises(EditError, match="looks ahead"):
        Anatomy.of(model)
    save_tiny("distil", "gpt2")
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=320, dim=16, n_layers=2, n_heads=2, hidden_dim=32)).save_pretrained(
        "distil"
    )
    assert "is a distilbert model, not a causal language model; editing needs a decoder" in refused("distil")


def mixtral(**entries):
    return AutoConfig.for_model("mixtral", **SMALL, intermediate_size=48, num_local_experts=4, **entries)


def test_a_mixture_of_experts_is_refused_before_its_weights_are_read():
    folder = save_tiny("moe", "llama")
    mixtral().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"gigabytes")
    sentence = refused(folder)
    assert "is a mixture of experts (num_local_experts = 4)" in sentence and "take a dense model" in sentence


def test_a_mixture_of_experts_is_refused_as_a_model():
    with pytest.raises(EditError, match=r"MixtralForCausalLM is a mixture of experts \(model.layers.0.mlp.experts\)"):
        Anatomy.of(AutoModelForCausalLM.from_config(mixtral()))


def test_of_a_mixture_the_dense_part_is_named():
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8}
    config = AutoConfig.for_model("deepseek_v3", **SMALL, first_k_dense_replace=1, **experts, **ranks)
    with pytest.raises(EditError, match=r"only the dense MLP of block 0 would be"):
        Anatomy.of(AutoModelForCausalLM.from_config(config))
    folder = save_tiny("moe", "llama")
    config.save_pretrained(folder)
    assert "only the dense MLP of block 0 would be" in refused(folder)


def test_a_dense_model_with_a_word_about_experts_is_not():
    load_pretrained(str(configured(num_experts=1)), None, torch.float32)
    load_pretrained(str(configured("other", num_experts=8, enable_moe_block=False)), None, torch.float32)


def test_a_model_wrapped_by_an_adapter():
    class Wrapped(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.base_layer, self.lora_A = linear, nn.ModuleDict({"default": nn.Linear(48, 2)})

        def forward(self, x):
            return self.base_layer(x)

    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.down_proj = Wrapped(block.mlp.down_proj)
    with pytest.raises(EditError, match=r"wrapped by an adapter .*merge it first"):
        Anatomy.of(model)


def test_blocks_that_return_something_else():
    model = tiny_model("llama")
    forward = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *args, **kwargs: [forward(*args, **kwargs)]
    model.model.layers[1].forward = (lambda inner: lambda x, **kwargs: inner(x[0], **kwargs))(model.model.layers[1].forward)
    with pytest.raises(EditError, match="returns a list instead of hidden states"):
        Anatomy.of(model)


def test_a_family_that_is_too_new():
    assert "is of type own_kind, which transformers" in refused(configured(model_type="own_kind"))


# ------------------------------------------------------------------------------------------------ code of the model's own


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A model whose folder brings Python files, and the file that these leave when they are run."""
    folder, mark = save_tiny(tmp_path / "foreign", "gpt2"), tmp_path / "was_run"
    (folder / "own.py").write_text(
        "from pathlib import Path\n\nfrom transformers import GPT2Config, GPT2LMHeadModel\n\n"
        f"Path({str(mark)!r}).touch()\n\n\nclass OwnConfig(GPT2Config):\n    model_type = 'own_gpt2'\n\n\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    path = folder / "config.json"
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "own_gpt2", "auto_map": auto}))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark


def test_code_of_the_models_own_is_not_run_unless_that_is_said(foreign):
    folder, mark = foreign
    sentence = refused(folder)
    assert "code of its own, which is never executed unless you say so" in sentence and "--trust_remote_code" in sentence
    assert not mark.exists()
    model, _ = load_pretrained(str(folder), None, torch.float32, trust_remote_code=True)
    assert mark.exists() and type(model).__name__ == "OwnModel"


def test_a_run_says_it_with_an_option(foreign):
    folder, mark = foreign
    with pytest.raises(EditError, match="never executed"):
        ContinualEditor(str(folder), MEMIT()).configure_model()
    assert not mark.exists()
    module = ContinualEditor(str(folder), MEMIT(), trust_remote_code=True)
    module.configure_model()
    assert type(module.net).__name__ == "OwnModel"


def test_code_that_is_not_needed_is_not_run(foreign):
    """A family that transformers knows itself is loaded with its own class."""
    folder, mark = foreign
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gpt2"}))
    model, _ = load_pretrained(str(folder), None, torch.float32)
    assert type(model).__name__ == "GPT2LMHeadModel" and not mark.exists()
