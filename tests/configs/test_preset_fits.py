"""Two batches with a preset of every family, on a tiny random model of the family that the preset is for."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from released import DERIVED, MEMIT
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.models.identity import load_pretrained
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

FAMILY = {
    "gpt2-xl": ("gpt2", {}),
    "gpt-j-6b": ("gptj", {}),
    "llama3-8b": ("llama", {"tie_word_embeddings": False}),
    "llama3.2-1b": ("llama", {"tie_word_embeddings": True}),
    "qwen2.5-7b": ("qwen2", {}),
    "qwen3-8b": ("qwen3", {}),
    "mistral-7b": ("mistral", {}),
    "phi-3-mini": ("phi3", {}),
    "gemma-2-2b": ("gemma2", {}),
    "gemma-3-1b": ("gemma3_text", {}),
    "gemma-3-4b": ("gemma3", {}),
}
BOS = ("llama", "mistral", "gemma")
SMALL = [
    *(
        "--model.targets.steps",
        "3",
        "--model.targets.contexts",
        "1",
        "--model.moment_tokens",
        "400",
        "--model.layers",
        "[0, 1]",
    ),
    *("--data.path", "facts.jsonl", "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--final", "false"),
    *("--drift.every_n_batches", "0", "--journal.factors", "false", "--trainer.enable_progress_bar", "false"),
]


ALIKE = {"llama3-8b-instruct": "llama3-8b", "llama3.2-3b": "llama3.2-1b"}
"""Presets whose models and settings are those of another one, but for their size."""


def test_every_preset_has_a_family():
    assert {*FAMILY, *ALIKE} == {*MEMIT, *DERIVED}
    assert all(MEMIT[name] == MEMIT[other] for name, other in ALIKE.items())


@pytest.mark.parametrize("preset", FAMILY)
def test_two_batches(preset, elsewhere):
    family, sizes = FAMILY[preset]
    save_tiny("model", family, bos=preset.startswith(BOS), **sizes)
    assert main(["fit", "--config", f"models/{preset}", "--model.pretrained", "model", "--run_dir", "run", *SMALL]) == 0

    records = [json.loads(line) for line in Path("run/journal.jsonl").read_text().splitlines()]
    assert [record["rejected"] for record in records] == [None, None]
    assert [case for record in records for case in record["cases"]] == ["0", "1", "2", "3"]
    after = json.loads(Path("run/summary.json").read_text())["after"]
    assert len(after) > 5 and all(isinstance(value, float) for value in after.values()), "every number is finite"

    saved = SafetensorsCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")["state_dict"]
    original = Anatomy.of(load_pretrained("model", None, torch.float32)[0])
    for layer in (0, 1):
        edited = saved[f"masters.layer_{layer}"]
        assert torch.isfinite(edited).all() and not torch.equal(edited, original.weight(layer))

    ran = yaml.safe_load(Path("run/config.yaml").read_text())["model"]
    released = MEMIT.get(preset, MEMIT["llama3-8b"])
    assert ran["editor"]["init_args"]["lam"] == released["mom2_update_weight"]
    assert (ran["targets"]["lr"], ran["targets"]["clamp"]) == (released["v_lr"], released["clamp_norm_factor"])
