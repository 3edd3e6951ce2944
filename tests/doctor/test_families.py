"""Every family through the whole examination, and that the examination leaves no trace."""

import pytest
import torch

import lit_edit
from lit_edit.anatomy import Anatomy
from lit_edit.doctor.finding import Verdict
from lit_edit.store import fingerprint
from tests.doctor.cases import all_checks
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

PLAIN = {"gpt2", "gptj", "gpt_neox", "opt", "phi", "mpt", "falcon"}
TIED = {"gpt2", "gemma2", "gemma3_text", "opt", "mpt", "falcon"}
HEADS = {**dict.fromkeys(FAMILIES, "MHA"), "falcon": "MQA"}
HEADS.update(dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text"), "GQA"))
WIDE = {"gpt2": 128, "gptj": 128, "mpt": 128}
NO_PACKS = {"mistral", "gemma2", "gemma3_text", "mpt"}


@pytest.fixture(scope="module", params=FAMILIES)
def examined(request):
    family = request.param
    return family, lit_edit.examine(tiny_model(family), tiny_tokenizer(family in ("llama", "gemma2")), name=family)


def test_every_check_is_made_and_nothing_is_off(examined):
    _, examination = examined
    assert [(finding.group, finding.name) for finding in examination.findings] == all_checks()
    assert not examination.of(Verdict.OFF, Verdict.CANNOT), examination.of(Verdict.OFF, Verdict.CANNOT)
    assert examination.exit_code == 0 and examination.summary().endswith("the model can be edited")


def block_output(family):
    """What a block gives back differs between versions of transformers."""
    anatomy, kinds = Anatomy.of(tiny_model(family)), []
    anatomy.blocks[0].register_forward_hook(lambda _module, _args, out: kinds.append(type(out).__name__))
    anatomy.model(torch.tensor([[1, 2, 3]]))
    return kinds[0].lower()


def test_parts_are_those_of_the_family(examined):
    family, examination = examined
    assert examination.find("parts", "class").values["type"] == family
    assert examination.find("parts", "down-projection").values["class"] == {"gpt2": "Conv1D", "falcon": "FalconLinear"}.get(
        family, "Linear"
    )
    assert examination.find("parts", "down-projection").values["d_in"] == WIDE.get(family, 48)
    assert examination.find("parts", "head").values["tied"] == (family in TIED)
    assert (examination.find("parts", "norm behind MLP").values["name"] is not None) == family.startswith("gemma")
    assert examination.find("parts", "logits").values["soft_cap"] == (3.0 if family == "gemma2" else None)
    assert examination.find("shape", "attention").values["kind"] == HEADS[family]
    assert examination.find("shape", "MLP").values["gated"] == (family not in PLAIN)
    assert examination.find("inside", "block output").values["kind"] == block_output(family)
    assert examination.find("shape", "layers").values["layers"] == ([0, 1] if family.startswith("gemma") else [0])


def test_passes_agree_and_the_fast_ways_are_named(examined):
    family, examination = examined
    for name in ("causal", "stopped early", "in a batch", "started late", "picked logits"):
        assert examination.find("partial passes", name).values["difference"] < 1e-5
    packs, going_on = (examination.find("partial passes", name) for name in ("packs", "continuation"))
    assert packs.values["used"] == (family not in NO_PACKS) == (packs.verdict is Verdict.OK)
    assert going_on.values["used"] and going_on.values["difference"] < 1e-5


def test_the_edit_takes_and_is_undone(examined):
    _, examination = examined
    target, written = (examination.find("edit and undo", name).values for name in ("target", "written"))
    assert target["target"] > target["before"] and written["reached"] > 0.75
    for name in ("weights undone", "logits undone"):
        assert examination.find("edit and undo", name).values["same"] is True


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon"])
def test_the_model_is_as_it_was(family):
    model, tokenizer = tiny_model(family).train(), tiny_tokenizer()
    model.lm_head.eval()
    model.get_input_embeddings().weight.requires_grad_(True)
    before = fingerprint(dict(model.state_dict()))
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    settings = model.config.to_dict(), model.generation_config.to_dict(), tokenizer.padding_side
    random = torch.get_rng_state()
    lit_edit.examine(model, tokenizer)
    assert fingerprint(dict(model.state_dict())) == before
    assert [module.training for module in model.modules()] == modes and False in modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags and True in flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.config.to_dict(), model.generation_config.to_dict(), tokenizer.padding_side) == settings
    assert torch.equal(torch.get_rng_state(), random)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)


def test_blocks_that_all_return_tuples_are_fine():
    model = tiny_model("llama")
    for block in model.model.layers:
        forward = block.forward
        block.forward = lambda x, *args, forward=forward, **kwargs: (forward(_bare(x), *args, **kwargs),)
    norm = model.model.norm.forward
    model.model.norm.forward = lambda x: norm(_bare(x))
    examination = lit_edit.examine(model, tiny_tokenizer())
    assert examination.exit_code == 0
    assert examination.find("inside", "block output").found == "a tuple from all 3 blocks"


def _bare(x):
    return x[0] if isinstance(x, tuple) else x


@pytest.mark.parametrize("name", ["world-gpt2", "world-llama"])
def test_the_embedded_models_learn_the_fact(name):
    from lit_edit.models.identity import load_pretrained

    examination = lit_edit.examine(*load_pretrained(f"checkpoints/{name}", None, torch.float32), layers=[0, 1])
    assert examination.verdict is Verdict.OK, examination.of(*list(Verdict)[1:])
    written = examination.find("edit and undo", "written").values
    assert written["before"] < 0.1 and written["after"] > 0.9


def test_layers_are_those_that_were_chosen():
    examination = lit_edit.examine(tiny_model("llama", num_hidden_layers=5), tiny_tokenizer(), layers=[3, 1])
    assert examination.find("shape", "layers").values == {"layers": [1, 3], "proposed": [0, 1], "published": None}
    assert set(examination.find("inside", "residual stream").values["slopes"]) == {1, 3}
    with pytest.raises(lit_edit.EditError, match="names layer 7"):
        lit_edit.examine(tiny_model("llama"), tiny_tokenizer(), layers=[7])


def test_a_model_of_nan_is_told_by_its_weights_and_cannot_be_edited():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    examination = lit_edit.examine(model, tiny_tokenizer())
    assert examination.exit_code == 2
    assert "up_proj" in examination.find("numbers", "weights").found
    assert "not finite" in examination.find("parts", "decoder").advice
    assert examination.find("tokenizer", "kind").verdict is Verdict.OK, "what can be looked at is"


def test_a_model_that_does_not_run_is_told_in_one_finding():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data = torch.zeros(32, 7)
    examination = lit_edit.examine(model, tiny_tokenizer())
    assert examination.exit_code == 2
    assert "LlamaForCausalLM does not run (RuntimeError" in examination.find("parts", "decoder").advice
