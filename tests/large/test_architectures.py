"""What sets published architectures apart, each through a whole run: BOS and none, heads, gates, ties, soft caps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from reduced import BOS, SIZES, model, save, tokenizer
from stream import write_facts
from torch import Tensor

import lit_edit
from benchmarks.large import differing, likelihoods, written
from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.keys import KeyPass
from lit_edit.models.identity import load_pretrained
from lit_edit.passes.forward import block_outputs, logits_at, starting_after
from lit_edit.prompts import Encoder, right_pad
from lit_edit.request import EditRequest
from lit_edit.targets import Step, TargetOptions, optimise

TEMPLATES = ("The {}", "I was born in Rome. {}")
REQUESTS = (
    EditRequest(prompt="{} was born in", subject="Ada Lovelace", target_new="Rome"),
    EditRequest(prompt="The mother tongue of {} is", subject="Marie Curie", target_new="Polish"),
    EditRequest(prompt="{}", subject="Kyōto", target_new="Paris"),
)


@pytest.fixture(scope="module", params=SIZES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def parts(name):
    """The model, its encoder and the rows of some requests."""
    anatomy, encoder = Anatomy.of(model(name)), Encoder(tokenizer(name), 128)
    return anatomy, encoder, [encoder.rows(request, TEMPLATES) for request in REQUESTS]


@torch.no_grad()
def inputs_of_down(anatomy: Anatomy, ids: tuple[int, ...] | list[int], layer: int) -> Tensor:
    """What a down-projection reads at every token of one whole row, by a plain hook on a plain pass: ``[tokens, d_in]``."""
    seen: list[Tensor] = []
    handle = anatomy.down(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    try:
        anatomy.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


# ---------------------------------------------------------------------------------------------------- rows and keys


def test_rows_begin_as_the_tokenizer_has_it(name, parts):
    _, encoder, rows = parts
    said = encoder.tokenizer
    for request, edit in zip(REQUESTS, rows, strict=True):
        bare = edit.reading[0]
        begins = said.convert_ids_to_tokens(bare.ids[0])
        assert (begins == BOS[name]) if name in BOS else (begins not in said.all_special_tokens)
        assert list(bare.ids).count(said.convert_tokens_to_ids(BOS[name]) if name in BOS else -1) == (name in BOS)
        # Up to the subject's last token the row says the prompt up to the subject's end, and one token less does not.
        upto = request.prompt.split("{}")[0] + request.subject
        assert said.decode(bare.ids[: bare.subject + 1], skip_special_tokens=True) == upto
        assert said.decode(bare.ids[: bare.subject], skip_special_tokens=True) != upto


def test_keys_are_read_at_the_subjects_last_token(name, parts):
    """Against whole rows through a plain hook: half the bare prompt and half the mean of the contexts."""
    anatomy, encoder, rows = parts
    reader = KeyPass(anatomy, rows, encoder.pad)
    for layer in (0, 2):
        found = reader.keys(layer)
        for request, edit, key in zip(REQUESTS, rows, found, strict=True):
            texts = [request.text, *(template.format(request.text) for template in TEMPLATES)]
            read = []
            for text, row in zip(texts, edit.reading, strict=True):
                ids = encoder.tokenizer(text)["input_ids"]
                assert tuple(ids[: row.subject + 1]) == tuple(row.ids[: row.subject + 1])
                read.append(inputs_of_down(anatomy, ids, layer)[row.subject])
            wanted = read[0] / 2 + (read[1] + read[2]) / 4
            torch.testing.assert_close(key, wanted, rtol=1e-4, atol=1e-5)
            beside = inputs_of_down(anatomy, encoder.tokenizer(texts[0])["input_ids"], layer)[edit.reading[0].subject - 1]
            assert float((key - beside).norm()) > 0.1 * float(key.norm())


# ---------------------------------------------------------------------------------------------------- what sets them apart


@torch.no_grad()
def test_heads_are_shared_and_ties_are_as_published(name):
    anatomy = Anatomy.of(model(name))
    config = anatomy.model.config
    past = anatomy.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    kept = {"gpt-j-6b": 4, "llama3-8b": 2, "llama3.2-1b": 2, "qwen2.5-7b": 1, "gemma-2-2b": 4}[name]
    assert past.layers[0].keys.shape[1] == kept and (kept < config.num_attention_heads) == (name != "gpt-j-6b")
    head, embeddings = anatomy.model.get_output_embeddings().weight, anatomy.model.get_input_embeddings().weight
    assert (head is embeddings) == (name in ("llama3.2-1b", "gemma-2-2b")) == bool(config.tie_word_embeddings)


@torch.no_grad()
def test_a_gate_is_in_the_key_and_parallel_attention_is_not(name):
    """GPT-J's MLP reads what its attention reads, so its first keys know the token alone; the others' know what stood before."""
    anatomy = Anatomy.of(model(name))
    one, other = (inputs_of_down(anatomy, ids, 0)[-1] for ids in ([5, 17, 42], [9, 30, 42]))
    assert torch.allclose(one, other, atol=1e-6) == (name == "gpt-j-6b")
    mlp = anatomy.blocks[0].mlp
    if name == "gpt-j-6b":
        assert not hasattr(mlp, "gate_proj")
        return
    mlp.gate_proj.weight.zero_()
    assert float(inputs_of_down(anatomy, [5, 17, 42], 0).abs().max()) == 0.0


@torch.no_grad()
def test_soft_caps_are_in_whatever_is_computed_in_part():
    """Both caps bend numbers here: without them logits and hidden states are others."""
    caps = {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.2}
    capped = Anatomy.of(model("gemma-2-2b", **caps))
    inputs = right_pad([[5, 17, 30, 42, 7], [8, 9, 10]], 0, capped.device)
    full = capped.model(**inputs, use_cache=False).logits
    assert float(full.abs().max()) < 1.5
    for cap in caps:
        plain = model("gemma-2-2b", **{**caps, cap: None})(**inputs, use_cache=False).logits
        assert float((plain - full).abs().max()) > 1e-3, cap
    uncapped = model("gemma-2-2b", **{**caps, "final_logit_softcapping": None})(**inputs, use_cache=False).logits
    torch.testing.assert_close(full, 1.5 * torch.tanh(uncapped / 1.5))
    for layer in range(4):
        with starting_after(capped, layer, block_outputs(capped, inputs, layer)):
            assert torch.equal(capped.model(**inputs, use_cache=False).logits, full)
    places = torch.tensor([0, 0, 1]), torch.tensor([4, 1, 2])
    torch.testing.assert_close(logits_at(capped, inputs, *places), full[places], rtol=1e-5, atol=1e-6)


def test_targets_are_aimed_through_the_soft_cap():
    """Logits within (-c, c) leave an answer among V tokens a loss above log V - 2 c; without a cap there is no such bound."""
    encoder = Encoder(tokenizer("gemma-2-2b"), 128)
    rows = [encoder.rows(request, ()) for request in REQUESTS[:2]]
    options = TargetOptions(steps=20, contexts=0, clamp=10.0)
    last = {}
    for cap in (0.2, None):
        steps: list[Step] = []
        anatomy = Anatomy.of(model("gemma-2-2b", final_logit_softcapping=cap))
        optimise(anatomy, rows, 1, options, encoder.pad, steps.append)
        last[cap] = max(steps[-1].nll.tolist())
        assert last[cap] < max(steps[0].nll.tolist())
    assert last[0.2] > math.log(anatomy.vocabulary) - 2 * 0.2 > last[None]


# ---------------------------------------------------------------------------------------------------- a whole run


def test_a_run_edits_its_layers_alone_and_is_undone_to_the_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = save(name, tmp_path / "base")
    facts = write_facts(tmp_path / "facts.jsonl", 4)
    options = [
        *("--config", f"models/{name}", "--model.pretrained", str(base), "--model.layers", "[1,2]"),
        *("--model.guards", "guards/revive", "--model.editor.lam", "1", "--model.moment_tokens", "2000"),
        *("--model.targets.contexts", "2", "--model.targets.context_tokens", "6", "--model.targets.lr", "0.5"),
        *("--model.targets.clamp", "4", "--model.cache_dir", str(tmp_path / "cache"), "--run_dir", "run"),
        *("--data.path", facts, "--data.batch_size", "4", "--drift.every_n_batches", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    assert main(["fit", *options]) == 0
    (record,) = (json.loads(line) for line in Path("run/journal.jsonl").read_text().splitlines())
    assert record["rejected"] is None and len(record["cases"]) == 4

    assert main(["export", "run", "--to", "delta", "--format", "delta"]) == 0
    net = load_pretrained(str(base), None, torch.float32)[0].eval()
    anatomy, edit = Anatomy.of(net), lit_edit.EditDelta.load("delta")
    encoder, requests = Encoder(tokenizer(name), 128), written(Path("run"))
    before = likelihoods(net, encoder, requests)
    edit.apply(net)
    assert differing(net, base) == [anatomy.weight_name(layer) for layer in (1, 2)]
    after = likelihoods(net, encoder, requests)
    assert all(now > old for old, now in zip(before, after, strict=True)), (before, after)
    assert sum(after) / 4 > sum(before) / 4 + 0.5
    edit.unapply(net)
    assert differing(net, base) == []
