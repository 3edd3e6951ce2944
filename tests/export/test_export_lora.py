"""LoRA adapters: the closest of their rank, as PEFT reads them, and refused where they would not be close."""

import json

import pytest
import torch
from exported import logits
from safetensors.torch import load_file
from tiny import normal, save_tiny
from transformers import AutoModelForCausalLM

import lit_edit
from lit_edit.errors import EditError
from lit_edit.export.lora import factorise


def change(rank=12, rows=40, columns=70):
    return normal(rows, rank) @ normal(rank, columns, seed=1) * 0.01


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_factors_are_the_best_of_their_rank(shape, rank):
    """Eckart and Young: the error is what the left out singular values hold."""
    whole = change(12, *shape)
    found = factorise(whole, rank)
    sigma = torch.linalg.svdvals(whole)
    assert found.rank == rank and found.a.shape == (rank, shape[1]) and found.b.shape == (shape[0], rank)
    assert found.a.dtype == found.b.dtype == torch.float32
    wanted = float(sigma[rank:].square().sum().sqrt() / sigma.square().sum().sqrt())
    assert found.error == pytest.approx(wanted, rel=1e-4, abs=2e-7)
    real = float((whole - found.b.double() @ found.a.double()).norm() / whole.norm())
    assert found.error == real


def test_no_more_triples_are_kept_than_there_are():
    found = factorise(change(3), 30)
    assert found.rank == 3 and found.error < 2e-7


@pytest.mark.parametrize("tolerance", [1e-5, 0.3, 0.7])
def test_the_smallest_rank_within_the_tolerance_is_taken(tolerance):
    whole = change()
    found = factorise(whole, None, tolerance)
    assert found.error <= tolerance
    assert found.rank == 1 or factorise(whole, found.rank - 1).error > tolerance
    assert (found.rank == 12) == (tolerance == 1e-5)


def test_both_factors_are_of_one_size():
    found = factorise(change(), 4)
    assert torch.allclose(found.a.norm(dim=1), found.b.norm(dim=0), rtol=1e-5)


def test_an_adapter_is_written_as_peft_reads_it(gpt2, llama, export, tmp_path):
    for name, ran, module, transposed in (
        ("gpt2", gpt2, "transformer.h.{}.mlp.c_proj", True),
        ("llama", llama, "model.layers.{}.mlp.down_proj", False),
    ):
        assert export(ran.folder, "--to", tmp_path / name, "--format", "lora") == 0
        said = json.loads((tmp_path / name / "adapter_config.json").read_text())
        stored = load_file(tmp_path / name / "adapter_model.safetensors")
        modules = [module.format(layer) for layer in (0, 1)]
        assert said["target_modules"] == modules and said["fan_in_fan_out"] is transposed
        assert said["base_model_name_or_path"] == ran.pretrained and said["peft_type"] == "LORA"
        assert said["rank_pattern"] == said["alpha_pattern"], "the factors are applied as they are"
        assert said["r"] == said["lora_alpha"] == max(said["rank_pattern"].values())
        for name_ in modules:
            a, b = (stored.pop(f"base_model.model.{name_}.lora_{side}.weight") for side in "AB")
            assert a.shape[0] == b.shape[1] == said["rank_pattern"][name_]
        assert not stored


def test_a_rank_that_is_asked_for_is_taken_and_its_error_is_told(gpt2, export, tmp_path, capsys):
    assert export(gpt2.folder, "--to", tmp_path / "out", "--format", "lora", "--rank", 3) == 0
    told = capsys.readouterr().out
    assert "layer 0: rank 3, relative error" in told and "layer 1: rank 3, relative error" in told
    error = float(told.split("layer 1: rank 3, relative error ")[1].split(")")[0])
    assert 0.01 < error < 1, "more than the tolerance, and accepted"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| 1 | transformer.h.1.mlp.c_proj | 3 | {error:.1e} |" in card and "--format lora --rank 3" in card


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-rank", 4], "needs rank 10 to come within 0.001 of it (--tolerance), and with --max-rank 4 the error is"),
        (["--max-rank", 2, "--tolerance", 0.01], "accept that with --rank 2, raise --max-rank, or export the exact change"),
    ],
)
def test_a_change_of_large_rank_is_refused(gpt2, export, tmp_path, capsys, options, told):
    assert export(gpt2.folder, "--to", tmp_path / "out", "--format", "lora", *options) == 2
    assert told in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_run_that_changed_nothing_has_no_adapter(gpt2, monkeypatch, tmp_path):
    import lit_edit.export.export as module

    def unchanged(state, which):
        return state.model.original, ""

    monkeypatch.setattr(module, "weights_of", unchanged)
    with pytest.raises(EditError, match="no weight differs from the base model behind 5 batches"):
        lit_edit.export_model(gpt2.folder, tmp_path / "out", "lora")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- in PEFT


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="needs the optional extra: pip install 'lit-edit[peft]'")


# What PEFT asks the newest transformers for has another name there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

LOGITS = {"float32": 2e-6, "bfloat16": 0.03}
"""Largest difference of a logit from the edited model's, relative to the largest logit: a few units in the last place."""


@pytest.mark.parametrize("which", ["gpt2", "llama", "prune"])
def test_peft_gets_the_logits_of_the_edited_model(which, export, tmp_path, request, peft):
    """In bfloat16 PEFT adds a float32 change to rounded outputs, the run multiplies by rounded weights."""
    ran = request.getfixturevalue(which)
    assert export(ran.folder, "--to", tmp_path / "out", "--format", "lora", "--tolerance", 1e-5) == 0
    base, wanted = logits(ran.base()), ran.edited()[1]
    model = peft.PeftModel.from_pretrained(ran.base(), tmp_path / "out").eval()
    found = logits(model)
    close = LOGITS[ran.dtype] * float(wanted.abs().max())
    assert float((found.float() - wanted.float()).abs().max()) <= close
    assert float((wanted.float() - base.float()).abs().max()) > 10 * close, "the edit itself is far larger"
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    merged = model.merge_and_unload()
    assert float((logits(merged).float() - wanted.float()).abs().max()) <= close


def test_every_layer_has_a_rank_of_its_own(gpt2, export, tmp_path, peft):
    """A loose tolerance, which one layer reaches at rank 3 and the other does not; PEFT adds what the file holds."""
    before, after = gpt2.base().state_dict(), gpt2.edited()[0]
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)]
    errors = [factorise((after[name].double() - before[name].double()).T, 3).error for name in names]
    assert export(gpt2.folder, "--to", tmp_path / "out", "--format", "lora", "--tolerance", sum(errors) / 2) == 0
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    model = gpt2.base()
    ranks = set()
    for layer in (0, 1):
        module = f"transformer.h.{layer}.mlp.c_proj"
        a, b = (stored[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        ranks.add(a.shape[0])
        model.get_submodule(module).weight.data += (b @ a).T
    assert len(ranks) == 2 and min(ranks) <= 3 < max(ranks)
    found = peft.PeftModel.from_pretrained(gpt2.base(), tmp_path / "out").eval()
    assert torch.allclose(logits(found), logits(model), rtol=0, atol=1e-6)


def test_the_adapter_names_its_base(gpt2, export, tmp_path, peft, monkeypatch):
    """Which PEFT then loads by itself."""
    save_tiny(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    assert export(gpt2.folder, "--to", tmp_path / "out", "--format", "lora", "--base-model", "model") == 0
    model = peft.AutoPeftModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    wanted = gpt2.edited()[1]
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained("model")), wanted, atol=1e-3)
