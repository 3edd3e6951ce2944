"""The change alone: on, off, bit for bit, and refused where it does not belong."""

import hashlib
import json
import shutil

import pytest
import torch
from exported import Ran, logits, same, weights
from safetensors.torch import load_file
from tiny import normal, save_tiny

import lit_edit
from lit_edit.__main__ import main
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.export.changes import MOST_STEPS, Change, smallest, thin
from lit_edit.journal.book import open_book
from lit_edit.journal.change import encode, size


@pytest.fixture(scope="module")
def deltas(gpt2, llama, prune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    for name, ran in (("gpt2", gpt2), ("llama", llama), ("prune", prune)):
        assert main(["export", str(ran.folder), "--to", str(folder / name), "--format", "delta"]) == 0
    return folder


@pytest.mark.parametrize("which", ["gpt2", "llama", "prune"])
def test_on_the_base_it_is_the_edited_model_and_off_it_the_base(which, deltas, request):
    """Three lines; the bits of the module, also where the model is bfloat16 and where a guard shows other weights."""
    ran = request.getfixturevalue(which)
    model = ran.base()
    before, shown = weights(model), logits(model)
    edit = lit_edit.EditDelta.load(deltas / which)
    for _ in range(2):
        edit.apply(model)
        assert same(weights(model), ran.edited()[0]) and torch.equal(logits(model), ran.edited()[1])
        edit.unapply(model)
        assert same(weights(model), before) and torch.equal(logits(model), shown)
    assert not torch.equal(ran.edited()[1], shown)


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_the_float32_weights_are_those_of_the_journal(which, deltas, request):
    ran = request.getfixturevalue(which)
    edit = lit_edit.EditDelta.load(deltas / which)
    book = open_book(ran.folder)
    said = {str(layer): entry.edited for layer, entry in edit.layers.items()}
    assert said == book.records[-1]["weights"] and edit.about["journal"] == book.records[-1]["sha256"]
    for layer, entry in edit.layers.items():
        stored = ran.base().get_parameter(entry.weight).data.float()
        found = edit.edited(layer, stored.T if entry.transposed else stored)
        assert found.dtype == torch.float32 and tuple(found.shape) == entry.shape == (32, 128 if which == "gpt2" else 48)
        master = load_masters(ran)[layer]
        assert torch.equal(found.view(torch.int32), master.view(torch.int32))


def load_masters(ran):
    from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

    state = SafetensorsCheckpointIO().load_checkpoint(ran.last)["state_dict"]
    return {int(name.rpartition("_")[2]): value for name, value in state.items() if name.startswith("masters.")}


def test_the_configuration_says_what_was_edited(gpt2, deltas):
    said = json.loads((deltas / "gpt2" / "edit_config.json").read_text())
    summary = json.loads((gpt2.folder / "summary.json").read_text())
    assert said["base_model_name_or_path"] == gpt2.pretrained and said["revision"] is None
    assert said["format"] == 2 and said["dtype"] == "float32" and said["base_sha256"] == summary["weights"]
    assert said["editor"]["name"] == "MEMIT" and said["editor"]["init_args"] == {"lam": 100.0, "history": True}
    assert said["guards"] == [] and said["edits"] == 10 and said["batches"] == 5 and said["finished"] is True
    assert said["requests"] == {"written": 10, "rejected": 0, "set aside": 0}
    assert {score["protocol"] for score in said["scores"]} == {"final", "immediate"}
    data = (deltas / "gpt2" / "edit_delta.safetensors").read_bytes()
    assert said["sha256"] == hashlib.sha256(data).hexdigest() and said["bytes"] == len(data)
    layer = said["layers"]["1"]
    assert layer["weight"] == "transformer.h.1.mlp.c_proj.weight" and layer["transposed"] is True
    assert layer["shape"] == [32, 128] and layer["form"] == "factors" and layer["steps"] == 5 and layer["rank"] == 10
    prune = json.loads((deltas / "prune" / "edit_config.json").read_text())
    assert prune["guards"][0]["name"] == "PRUNE" and "restrained by PRUNE" in prune["weights"]
    assert json.loads((deltas / "llama" / "edit_config.json").read_text())["dtype"] == "bfloat16"


def test_the_factors_are_the_change_for_whoever_multiplies_them(gpt2, deltas):
    """Without this project: whole numbers times powers of two, as docs/export.md says."""
    stored = load_file(deltas / "gpt2" / "edit_delta.safetensors")
    for layer, master in load_masters(gpt2).items():
        before = gpt2.base().transformer.h[layer].mlp.c_proj.weight.data.T
        total = torch.zeros(32, 128, dtype=torch.float64)
        for step in range(5):
            part = {name: stored[f"{layer}.{step}.{name}"].double() for name in
                    ("left", "left_low", "left_exponent", "right", "right_low", "right_exponent")}  # fmt: skip
            left = (part["left"] + part["left_low"] / 256) * 2 ** part["left_exponent"][:, None]
            right = (part["right"] + part["right_low"] / 256) * 2 ** part["right_exponent"]
            total += left @ right
        assert torch.allclose(before.double() + total, master.double(), rtol=0, atol=2e-6)


# ---------------------------------------------------------------------------------------------------- forms


def bits(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def pair(rank=3, rows=60, columns=90, change=0.02):
    before = normal(rows, columns).float()
    left, right = normal(rows, rank, seed=1) * change, normal(rank, columns, seed=2)
    return before, before + (left @ right).float(), Delta.low_rank(left, right)


def test_a_change_of_small_rank_is_kept_as_factors():
    """The rule: where factors and patch take fewer bytes than the difference number by number."""
    before, after, delta = pair()
    for steps in (None, [encode(before, after, delta)]):
        found = smallest(before, after, steps)
        assert found.form == "factors" and found.rank == 3 and bits(found.apply(before), after)
        assert 5 * 3 * 150 < found.bytes < 4 * before.numel() / 2


@pytest.mark.parametrize("rank", [10, 20, 25, 28, 40])
def test_the_smaller_form_is_taken(rank):
    """Around 29, where five bytes a number of the factors meet four bytes a number of the weight."""
    before, after, delta = pair(rank, change=0.2)
    step = encode(before, after, delta)
    found = smallest(before, after, [step] if "left" in step else None)
    factors = size(step) if "left" in step else float("inf")
    dense = smallest(before, after, [step] * (MOST_STEPS + 1))
    assert dense.form == "dense" and dense.bytes == 4 * before.numel()
    assert found.form == ("factors" if factors < dense.bytes else "dense")
    assert found.bytes == min(factors, dense.bytes) and bits(found.apply(before), after)
    assert (rank < 29) == (found.form == "factors")


def test_the_dense_difference_is_exact_where_float32_differences_are_not():
    """Small numbers behind large ones, signed zeros, and the ends of the range."""
    before = torch.tensor([[1.0, 1.0, -0.0, 0.0, 3e38, 1e-45, 1.0, -5.0]])
    after = torch.tensor([[1e-9, -1e-12, 0.0, -0.0, -3e38, 0.0, 1.0, 5.0]])
    found = smallest(before, after, None)
    assert found.form == "dense" and bits(found.apply(before), after) and found.bytes == 4 * before.numel()
    assert not bits(before + (after - before), after)
    random = normal(50, 70).float() * 10 ** normal(50, 70, seed=3).float()
    other = normal(50, 70, seed=4).float() * 10 ** normal(50, 70, seed=5).float()
    assert bits(smallest(random, other, None).apply(random), other)
    assert bits(smallest(random.double().T.float(), other.T, None).apply(random.T), other.T.contiguous())


def test_an_unchanged_weight_takes_nothing():
    before, _, _ = pair()
    found = smallest(before, before.clone(), None)
    assert found == Change("none", ()) and found.bytes == 0 and found.apply(before) is before
    assert smallest(torch.zeros(2, 2), -torch.zeros(2, 2), None).form == "dense", "0 and -0 differ"


def test_what_rounding_adds_to_a_change_is_not_taken_for_rank():
    for scale in (1e-3, 1.0, 1e3):
        before, after, _ = pair(4)
        found = thin(before * scale, before * scale + (after - before) * scale)
        assert found.factors[0].shape[1] == 4


def test_a_folded_journal_gives_the_same_edit(copied, deltas, export, tmp_path):
    assert main(["journal", "compact", str(copied.folder), "--before", "3"]) == 0
    assert export(copied.folder, "--to", tmp_path / "out", "--format", "delta") == 0
    edit = lit_edit.EditDelta.load(tmp_path / "out")
    assert {entry.form for entry in edit.layers.values()} == {"dense"}
    model = copied.base()
    edit.apply(model)
    assert torch.equal(logits(model), copied.edited()[1])


def test_a_state_in_between_has_its_own_edit(gpt2, export, tmp_path):
    assert export(gpt2.folder, "--to", tmp_path / "out", "--format", "delta", "--batches", 2) == 0
    edit = lit_edit.EditDelta.load(tmp_path / "out")
    assert {entry.steps for entry in edit.layers.values()} == {2} and edit.about["finished"] is False
    model = gpt2.base()
    edit.apply(model)
    assert torch.equal(logits(model), gpt2.edited("batch-step=2.ckpt")[1])


# ---------------------------------------------------------------------------------------------------- where it belongs


def refused(edit, model, told):
    before = weights(model)
    with pytest.raises(EditError, match=told) as caught:
        edit.apply(model)
    assert same(weights(model), before), "all or nothing"
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(gpt2, llama, deltas, tmp_path):
    edit = lit_edit.EditDelta.load(deltas / "gpt2")
    model = gpt2.base()
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] += 1e-6  # the second layer: the first must not have been written
    refused(edit, model, r"h\.1\.mlp\.c_proj\.weight is not the weight that the edit in .* was made for .* loaded in float32")
    refused(edit, llama.base(), "LlamaForCausalLM has no weight transformer.h.0.mlp.c_proj.weight")
    refused(edit, gpt2.base("bfloat16"), "is not the weight")
    save_tiny(tmp_path / "wide", "gpt2", n_inner=64)
    refused(edit, Ran(tmp_path, str(tmp_path / "wide"), "float32").base(), r"has the shape \[32, 64\]")
    strange = gpt2.base()
    strange.transformer.h[0].mlp.c_proj = torch.nn.Linear(128, 32)
    refused(edit, strange, "belongs to a Linear, float32 on cpu")
    with torch.device("meta"), pytest.raises(EditError, match="on meta"):
        edit.apply(type(strange)(strange.config))


def test_what_is_edited_already_is_refused(gpt2, llama, deltas, export, tmp_path):
    for which, ran in (("gpt2", gpt2), ("llama", llama)):
        edit, other = (lit_edit.EditDelta.load(deltas / which) for _ in range(2))
        model = ran.base()
        edit.apply(model)
        refused(edit, model, "is applied to this model already; unapply it first")
        refused(other, model, "holds this edit already; apply the edit in .* to the unedited model")
        with pytest.raises(EditError, match="was not applied to this model by this object"):
            other.unapply(model)
        edit.unapply(model)
        with pytest.raises(EditError, match="was not applied to this model by this object"):
            edit.unapply(model)


def test_what_was_changed_since_is_not_overwritten(gpt2, deltas):
    edit, model = lit_edit.EditDelta.load(deltas / "gpt2"), gpt2.base()
    edit.apply(model)
    model.transformer.h[1].mlp.c_proj.weight.data[3, 3] += 1.0
    changed = weights(model)
    with pytest.raises(EditError, match=r"h\.1\.mlp\.c_proj\.weight was changed since the edit was applied"):
        edit.unapply(model)
    assert same(weights(model), changed)


def test_two_models_at_once_are_kept_apart(gpt2, deltas):
    edit, one, other = lit_edit.EditDelta.load(deltas / "gpt2"), gpt2.base(), gpt2.base()
    before = weights(one)
    edit.apply(one)
    edit.apply(other)
    edit.unapply(one)
    assert same(weights(one), before) and same(weights(other), gpt2.edited()[0])
    edit.unapply(other)
    assert same(weights(other), before)


def test_a_model_that_is_gone_is_not_kept_alive(gpt2, deltas):
    import gc
    import weakref

    edit, model = lit_edit.EditDelta.load(deltas / "gpt2"), gpt2.base()
    edit.apply(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_cache_of_a_hub_links_to_its_files(deltas, tmp_path):
    """snapshots/REVISION/NAME is a link to blobs/HASH there."""
    cache = tmp_path / "models--someone--edit"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for name in ("edit_config.json", "edit_delta.safetensors"):
        shutil.copy(deltas / "gpt2" / name, cache / "blobs" / name[:7])
        (cache / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{name[:7]}")
    (cache / "blobs" / "other").write_bytes((deltas / "gpt2" / "edit_delta.safetensors").read_bytes())
    (cache / "snapshots" / "abc" / "edit_delta.safetensors").unlink()
    (cache / "snapshots" / "abc" / "edit_delta.safetensors").symlink_to("../../blobs/other")
    assert set(lit_edit.EditDelta.load(cache / "snapshots" / "abc").layers) == {0, 1}
