"""Wider MLPs: the same function, new units that are mostly silent, and something for an editor to write into."""

import pytest
import torch
from tiny import TEXT, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.reference.widen import main, widened


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model", "gpt2")


def test_the_wider_model_says_the_same(folder, tmp_path, capsys):
    main([str(folder), "--inner", "200", "--to", str(tmp_path / "wide")])
    assert "200 hidden units" in capsys.readouterr().out
    model, wide = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "wide"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "wide")(TEXT[0], return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(wide(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    narrow, broad = Anatomy.of(model).weight(0), Anatomy.of(wide).weight(0)
    assert broad.shape == (narrow.shape[0], 200)
    torch.testing.assert_close(broad[:, : narrow.shape[1]], narrow, rtol=0, atol=0)
    assert not broad[:, narrow.shape[1] :].any()


def test_new_units_read_at_random_and_the_threshold_silences_them(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    own = model.config.n_inner or 4 * model.config.n_embd
    wide, again, other = (widened(model, own + 500, 0.25, seed) for seed in (0, 0, 1))
    first, second, third = (one.transformer.h[0].mlp.c_fc.weight[:, own:] for one in (wide, again, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert float(first.detach().std()) == pytest.approx(float(model.transformer.h[0].mlp.c_fc.weight.detach().std()), rel=0.05)
    assert (wide.transformer.h[0].mlp.c_fc.bias[own:] == -0.25).all()
    assert not torch.equal(first, wide.transformer.h[1].mlp.c_fc.weight[:, own:]), "every layer has units of its own"


def test_what_cannot_be_widened_is_one_sentence(folder, tmp_path):
    with pytest.raises(EditError, match="LlamaForCausalLM cannot be widened"):
        widened(AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "llama", "llama")), 500)
    with pytest.raises(EditError, match="hidden units already"):
        main([str(folder), "--inner", "4", "--to", str(tmp_path / "wide")])
    assert not (tmp_path / "wide").exists()
