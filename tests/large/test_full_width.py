"""GPT-J's and Llama-3-8B's blocks at their full width, and models of GPT-2-XL's shape as a whole, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reduced import tokenizer
from stream import write_facts
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import large
from benchmarks.large import alone
from benchmarks.shapes import random_model
from lit_edit.anatomy import Anatomy
from lit_edit.keys import KeyPass
from lit_edit.passes.forward import block_outputs, starting_after
from lit_edit.prompts import Encoder, right_pad
from lit_edit.request import EditRequest

BLOCKS = {"gpt-j-6b": ({"n_layer": 2}, 16384), "llama3-8b": ({"num_hidden_layers": 2}, 14336)}
"""Two blocks, one that is edited and one behind it, and the width of the MLP."""


def folder_of(name: str, folder: Path, **changes) -> Path:
    """A model of full width and two blocks with a small tokenizer."""
    said = tokenizer(name)
    ids = {"eos_token_id": said.eos_token_id, "bos_token_id": said.bos_token_id}
    random_model(name, **{**BLOCKS[name][0], **ids, **changes}).save_pretrained(folder)
    said.save_pretrained(folder)
    return folder


def edited(name: str, base: Path, folder: Path) -> None:
    """A run of two facts by ROME with the key itself as its metric, which needs no second moment of 16,384 inputs."""
    arguments = [
        *("--model.pretrained", str(base), "--model.layers", "[0]", "--model.editor", "ROME", "--model.editor.adjust", "false"),
        *("--model.targets.contexts", "0", "--model.targets.steps", "10", "--model.cache_dir", str(folder / "cache")),
        *("--data.path", write_facts(folder / "facts.jsonl", 2), "--data.batch_size", "2", "--run_dir", str(folder / "run")),
        *("--drift.every_n_batches", "0", "--baseline", "false", "--final", "false"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    found = alone(1, large.fit, arguments, base)
    weight = {"gpt-j-6b": "transformer.h.0.mlp.fc_out.weight", "llama3-8b": "model.layers.0.mlp.down_proj.weight"}[name]
    assert found["changed"] == [weight]
    (record,) = (json.loads(line) for line in (folder / "run" / "journal.jsonl").read_text().splitlines())
    assert record["rejected"] is None and len(record["cases"]) == 2
    undone = alone(1, large.undo, folder / "run", base, folder / "delta")
    assert undone["applied"] == [weight] and undone["left"] == []
    assert all(now > old for now, old in zip(undone["after"], undone["before"], strict=True))
    assert sum(undone["after"]) > sum(undone["before"]) + 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_at_full_width(name, tmp_path):
    """Only the vocabulary is cut. Orientation of the weight, keys, passes in part, one edit and its undo."""
    vocabulary = len(tokenizer(name))
    base = folder_of(name, tmp_path / "base", vocab_size=vocabulary)
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    anatomy, encoder = Anatomy.of(net), Encoder(tokenizer(name), 128)
    assert (anatomy.d_model, anatomy.d_inner) == (4096, BLOCKS[name][1])
    heads = net.config.num_attention_heads, getattr(net.config, "num_key_value_heads", None)
    assert heads == {"gpt-j-6b": (16, None), "llama3-8b": (32, 8)}[name]
    block = sum(value.numel() for value in anatomy.blocks[0].parameters())
    assert block == {"gpt-j-6b": 201_355_264, "llama3-8b": 218_112_000}[name]

    rows = [encoder.rows(EditRequest("{} was born in", "Ada Lovelace", "Rome"), ("The {}",))]
    inputs = right_pad([list(row.ids) for row in rows[0].reading], 0, anatomy.device)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = anatomy.down(0).register_forward_hook(lambda _, given, told: seen.append((given[0], told)))
    with torch.no_grad():
        full = net(**inputs, use_cache=False).logits
    handle.remove()
    keys, outputs = (part[torch.arange(2), torch.tensor([row.subject for row in rows[0].reading])] for part in seen[0])
    torch.testing.assert_close(KeyPass(anatomy, rows, encoder.pad).keys(0)[0], keys.mean(0), rtol=1e-4, atol=1e-5)
    bias = anatomy.down(0).bias
    plain = keys @ anatomy.weight(0).T + (0 if bias is None else bias)
    torch.testing.assert_close(plain, outputs, rtol=1e-3, atol=1e-4)
    with torch.no_grad(), starting_after(anatomy, 0, block_outputs(anatomy, inputs, 0)):
        assert torch.equal(net(**inputs, use_cache=False).logits, full)
    # GPT-J's attention and MLP both read the block's input: silencing attention leaves its keys alone, and moves Llama's.
    with torch.no_grad():
        (anatomy.blocks[0].attn.out_proj if name == "gpt-j-6b" else anatomy.blocks[0].self_attn.o_proj).weight.zero_()
    silenced = KeyPass(anatomy, rows, encoder.pad).keys(0)[0]
    assert torch.allclose(silenced, keys.mean(0), rtol=1e-4, atol=1e-5) == (name == "gpt-j-6b")
    seen.clear()
    del net, anatomy
    edited(name, base, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_whole_model_at_reduced_depth(name, tmp_path):
    """Two blocks between the published embeddings and head, neither of them tied: 3.3 GB and 6 GB."""
    base = folder_of(name, tmp_path / "base")
    edited(name, base, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_four_edits_into_gpt2_xls_shape_take_less_than_20_gb(shared, tmp_path):
    """The preset's layers and settings, CounterFact's first records, REVIVE, the journal; each step a process of its own."""
    data = shared / "data"
    base, run = tmp_path / "model", tmp_path / "run"
    made = alone(2, large.build, data / "tokenizer" / "vocab.json", data / "tokenizer" / "merges.txt", base, {})
    assert made["parameters"] == 1_557_611_200
    records, text = data / "counterfact" / "counterfact_500.json", data / "corpus" / "wikitext2_valid.txt"
    found = alone(2, large.fit, large.command_line(base, run, records, text, 8192), base)
    undone = alone(2, large.undo, run, base, tmp_path / "delta")

    layers = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (13, 14, 15, 16, 17)]
    assert found["changed"] == undone["applied"] == layers and undone["left"] == []
    assert max(one["peak"] for one in (made, found, undone)) < 20e9
    (record,) = (json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines())
    assert record["rejected"] is None and len(record["cases"]) == 4
    assert all(0 < record["scalars"][f"guard/REVIVE/removed_share/layer_{layer}"] < 1 for layer in (13, 14, 15, 16, 17))
    assert all(now > old for now, old in zip(undone["after"], undone["before"], strict=True))
