"""The layers that are proposed for a published shape are those of the preset of that model."""

import pytest
import yaml

from lit_edit.doctor.published import _CHOICES, published
from lit_edit.options.packaged import config_path

PRESETS = {
    "GPT-2 XL": "models/gpt2-xl",
    "GPT-J 6B": "models/gpt-j-6b",
    "Llama 3 8B": "models/llama3-8b",
    "Qwen 2.5 7B": "models/qwen2.5-7b",
}


def test_every_choice_has_a_preset():
    assert {one.model for one in _CHOICES} == set(PRESETS)


@pytest.mark.parametrize("choice", _CHOICES, ids=lambda one: one.kind)
def test_layers(choice):
    preset = yaml.safe_load(config_path(PRESETS[choice.model]).read_text())
    assert preset["model"]["layers"] == list(choice.layers)
    assert published(choice.kind, choice.blocks, choice.d_model, choice.d_inner) is choice
    assert published(choice.kind, choice.blocks + 1, choice.d_model, choice.d_inner) is None
