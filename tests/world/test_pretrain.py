"""Pre-training: batches, masks, and a few steps of the real command."""

import json
from random import Random

import pytest
import torch

from lit_edit.pretraining.rows import labels_and_weights, masks, pack
from lit_edit.world import check
from lit_edit.world.facts import World
from lit_edit.world.text import person_document, training_documents
from lit_edit.world.tokenizer import build_tokenizer

WORLD = World(people=40, held_back=10, names=8)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORLD)


def _batch(tokenizer, hidden):
    rng = Random(0)
    return pack([person_document(WORLD, rng) for _ in range(30)], tokenizer, 64, hidden, rng)


def test_batches_follow_from_the_seed(tokenizer):
    one, two = (pack(training_documents(WORLD, Random(5), 40), tokenizer, 64, 0.7, Random(6)) for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_documents_of_a_row_never_see_each_other(tokenizer):
    batch = _batch(tokenizer, hidden=0.7)
    other = batch["document"][:, :, None] != batch["document"][:, None, :]
    for mask in masks(batch):
        assert (mask[:, 0][other] < 0).all()
        assert (mask[:, 0].diagonal(dim1=1, dim2=2) == 0).all()


def test_without_restriction_attention_is_causal(tokenizer):
    early, late = masks(_batch(tokenizer, hidden=0.0))
    assert torch.equal(early, late)


def test_restricted_attention_reaches_a_name_only_late_and_only_at_its_last_token(tokenizer):
    batch = _batch(tokenizer, hidden=1.0)
    early, late = (mask[:, 0] == 0 for mask in masks(batch))
    name, last = batch["mention"] > 0, batch["subject"] >= 0
    outside = ~name[:, :, None]
    assert not (early & outside & name[:, None, :]).any()
    assert not (late & outside & (name & ~last)[:, None, :]).any()
    assert (late & outside & last[:, None, :]).any()


def test_values_weigh_most_and_nothing_crosses_documents(tokenizer):
    batch = _batch(tokenizer, hidden=0.5)
    labels, weight = labels_and_weights(batch)
    values = {tokenizer(" " + value)["input_ids"][0] for relation in WORLD.relations for value in relation.values}
    assert all(int(label) in values for label in labels[weight == 1.0])
    ends = batch["document"] != batch["document"].roll(-1, 1)
    assert (weight[ends] == 0).all()


def _train(folder, family):
    from lit_edit.world.cli import main

    options = {
        "config": "configs/pretrain_world.yaml", "model.export_to": folder, "model.family": family, "model.width": 32,
        "model.heads": 2, "model.inner": 64, "trainer.max_steps": 5, "trainer.val_check_interval": 5,
        "trainer.enable_progress_bar": "false", "data.batches": 5, "data.documents": 20, "data.people": 40,
        "data.held_back": 10, "data.names": 8,
    }  # fmt: skip
    main([part for key, value in options.items() for part in (f"--{key}", str(value))])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_five_steps_end_in_a_folder_that_loads(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    _train(folder, family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    world = World(**json.loads((folder / "world.json").read_text()))
    assert world == WORLD
    assert tokenizer(world.subjects[0])["input_ids"] == build_tokenizer(world)(world.subjects[0])["input_ids"]
    assert len(check.recall(model, tokenizer, world)) == 4
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert "same licence as the project" in (folder / "README.md").read_text()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name in ("one", "two"):
        _train(tmp_path / name, "gpt2")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
