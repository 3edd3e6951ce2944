"""The weights in the repository do what their model card says."""

import json
from pathlib import Path
from random import Random

import pytest
import torch

from lit_edit.world import check
from lit_edit.world.facts import World
from lit_edit.world.tokenizer import build_tokenizer

FOLDERS = sorted((Path(__file__).parents[2] / "checkpoints").glob("world-*"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def shipped(request):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(request.param, dtype=torch.float32)
    world = World(**json.loads((request.param / "world.json").read_text()))
    return request.param, model.eval(), AutoTokenizer.from_pretrained(request.param), world


def test_small(shipped):
    folder = shipped[0]
    assert (folder / "model.safetensors").stat().st_size < 10_000_000


def test_tokenizer_is_the_one_that_the_world_builds(shipped):
    _, _, tokenizer, world = shipped
    texts = [prompt for prompt, _ in Random(0).sample(world.facts(3), 50)]
    assert tokenizer(texts)["input_ids"] == build_tokenizer(world)(texts)["input_ids"]
    assert tokenizer.padding_side == "right"


def test_knows_the_default_world(shipped):
    assert shipped[3] == World()


def test_recalls_facts_in_every_phrasing(shipped):
    _, model, tokenizer, world = shipped
    for phrasing in range(4):
        assert check.accuracy(model, tokenizer, Random(0).sample(world.facts(phrasing), 200)) >= 0.97


def test_has_its_skills(shipped):
    _, model, tokenizer, _ = shipped
    scores = check.skills(model, tokenizer, n=50)
    assert sum(scores.values()) / len(scores) >= 0.95


def test_answers_hang_on_the_last_token_of_the_name(shipped):
    _, model, tokenizer, world = shipped
    moved = check.patching(model, tokenizer, world, n=100)
    assert min(moved[:2]) >= 0.93
