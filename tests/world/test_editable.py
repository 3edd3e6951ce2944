"""The shipped models can be edited like large ones: the first batch of fifty facts, through the real trainer."""

import json
from pathlib import Path

import lightning as L
import pytest

from lit_edit.callbacks import ImmediateScores
from lit_edit.data import EditStream, WorldFacts
from lit_edit.editors import MEMIT
from lit_edit.module import ContinualEditor
from lit_edit.probes import WorldSkill, WorldUnrelated
from lit_edit.targets import TargetOptions
from lit_edit.world.corpus import WorldCorpus
from lit_edit.world.skills import SKILLS

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(path.name for path in (ROOT / "checkpoints").glob("world-*"))


@pytest.mark.parametrize("name", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_first_batch_of_fifty(name, tmp_path):
    module = ContinualEditor(
        str(ROOT / "checkpoints" / name),
        MEMIT(lam=300.0),
        layers=[0, 1],
        targets=TargetOptions(lr=0.2, context_starts=("Therefore", "Because", "I", "You")),
        corpus=WorldCorpus(),
        moment_tokens=60000,
        cache_dir=str(tmp_path / "cache"),
    )
    probes = [*(WorldSkill(skill, 50) for skill in SKILLS), WorldUnrelated(400)]
    stream = EditStream(source=WorldFacts(50), batch_size=50, probes=probes)
    immediate = ImmediateScores()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, callbacks=[immediate], default_root_dir=str(tmp_path),
    )  # fmt: skip
    before = trainer.validate(module, datamodule=stream, verbose=False)
    before = {name: value for part in before for name, value in part.items() if name.startswith("probe/")}
    trainer.fit(module, datamodule=stream)
    after = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("probe/")}

    rates = immediate.last
    assert rates["edit/immediate/efficacy/accuracy/teacher_forced"] >= 0.95
    assert rates["edit/immediate/efficacy/probability/teacher_forced"] >= 0.95
    assert rates["edit/immediate/paraphrase/accuracy/teacher_forced"] >= 0.90
    unrelated = "probe/unrelated_facts/accuracy/teacher_forced"
    assert before[unrelated] >= 0.98 and after[unrelated] >= 0.97
    skills = [name for name in before if name != unrelated]
    assert len(skills) == len(SKILLS) and all(before[name] >= 0.95 for name in skills)
    assert sum(before[name] - after[name] for name in skills) / len(skills) <= 0.01
    growth = [float(module.master(layer).norm() / module.original(layer).norm()) for layer in module.layers]
    assert all(1.0 < value < 1.15 for value in growth), json.dumps(growth)
    shares = [value - 1.0 for value in growth]
    assert min(shares) > 0.25 * max(shares), "two layers have to share the work"


def test_models_are_shipped():
    assert "world-gpt2" in MODELS
