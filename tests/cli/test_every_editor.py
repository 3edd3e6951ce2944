"""Every editor fragment, alone and under REVIVE, over a few batches of the embedded world, through ``lit-edit fit``."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lit_edit.__main__ import main
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.spectrum import decompose, energy_rank, triple_drift

ROOT = Path(__file__).resolve().parents[2]
FRAGMENTS = sorted(path.stem for path in (ROOT / "configs" / "editors").glob("*.yaml") if path.stem != "mend")
"""MEND needs a trained network first: tests/cli/test_train_mend.py."""

ONE_LAYER = ("rome", "rrome")
SIZED = {
    # Published weights are for models a thousand times as large, whose inputs have another scale.
    "alphaedit": {"threshold": 1.0, "ridge": 1.0},
    "betaedit": {"threshold": 1.0, "lam": 30.0, "ridge": 1.0},
    "deltaedit": {"threshold": 1.0, "ridge": 1.0},
    "emmet": {"lam": 100.0},
    "encore": {"lam": 100.0, "ridge": 1.0},
    "evoedit": {"threshold": 1.0, "ridge": 1.0},
    "lyaplock": {"lam": 100.0},
    "memit": {"lam": 100.0},
    "memit_history": {"lam": 100.0},
    "nse": {"lam": 100.0, "alpha": 0.1, "upper_bound": 1000.0},
    "rlsedit": {"lam": 100.0},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Second moments and spectra are collected once per model."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("model", "guard"),
    [
        ("world-gpt2", "revive"),
        pytest.param("world-llama", "none", marks=pytest.mark.slow),
        pytest.param("world-gpt2", "none", marks=pytest.mark.slow),
        pytest.param("world-llama", "revive", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", FRAGMENTS)
def test_editor_runs_over_the_embedded_stream(name, model, guard, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    pretrained = ROOT / "checkpoints" / model
    arguments = [
        *("fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--run_dir", "run"),
        *("--model.pretrained", str(pretrained), "--model.layers", "[0]" if name in ONE_LAYER else "[0, 1]"),
        *("--model.editor", str(ROOT / "configs" / "editors" / f"{name}.yaml")),
        *("--model.guards", "null" if guard == "none" else str(ROOT / "configs" / "guards" / "revive.yaml")),
        *("--model.cache_dir", cache, "--model.moment_tokens", "3000"),
        *("--model.targets.steps", "6", "--model.targets.contexts", "1"),
        *("--data.source.n", "6", "--data.batch_size", "3", "--data.probes", "[]", "--trainer.accelerator", "cpu"),
    ]
    for key, value in SIZED.get(name, {}).items():
        arguments += [f"--model.editor.{key}", str(value)]
    assert main(arguments) == 0

    records = [json.loads(line) for line in Path("run/journal.jsonl").read_text().splitlines()]
    assert [record["rejected"] for record in records] == [None, None]
    assert sum(len(record["cases"]) for record in records) == 6 and not any(record["set_aside"] for record in records)
    summary = json.loads(Path("run/summary.json").read_text())
    numbers = [value for part in ("before", "after", "immediate", "drift") for value in summary[part].values()]
    assert len(numbers) > 10 and all(isinstance(value, float) for value in numbers), "every number is finite"

    saved = SafetensorsCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")["state_dict"]
    from transformers import AutoModelForCausalLM

    from lit_edit.anatomy import Anatomy

    anatomy = Anatomy.of(AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32))
    for layer in (0,) if name in ONE_LAYER else (0, 1):
        original, edited = anatomy.weight(layer).detach(), saved[f"masters.layer_{layer}"]
        assert torch.isfinite(edited).all() and not torch.equal(original, edited)
        spectrum = decompose(original)
        drift = triple_drift(spectrum, edited, energy_rank(spectrum.sigma, 0.1))
        if guard == "revive":
            assert drift < 1e-4, "the protected triples have moved"
            assert all(
                f"guard/REVIVE/{what}/layer_{layer}" in records[0]["scalars"] for what in ("removed_share", "overlap_both")
            )
