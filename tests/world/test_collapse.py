"""A long stream on the shipped model: plain MEMIT visibly collapses, and the guard keeps what it promises to keep."""

from pathlib import Path

import lightning as L
import pytest

from lit_edit.data import EditStream, WorldFacts
from lit_edit.editors import MEMIT
from lit_edit.guards import REVIVE
from lit_edit.module import ContinualEditor
from lit_edit.probes import WorldSkill, WorldUnrelated
from lit_edit.spectrum import energy_rank, triple_drift
from lit_edit.targets import TargetOptions
from lit_edit.world.corpus import WorldCorpus
from lit_edit.world.skills import SKILLS

MODEL = Path(__file__).resolve().parents[2] / "checkpoints" / "world-gpt2"


def stream(tmp_path, guards, edits=1000):
    module = ContinualEditor(
        str(MODEL),
        MEMIT(lam=300.0),
        layers=[0, 1],
        guards=guards,
        targets=TargetOptions(lr=0.2, context_starts=("Therefore", "Because", "I", "You")),
        corpus=WorldCorpus(),
        moment_tokens=60000,
        cache_dir=str(tmp_path / "cache"),
    )
    module.wants_spectra = True
    probes = [*(WorldSkill(skill) for skill in SKILLS), WorldUnrelated(400)]
    data = EditStream(source=WorldFacts(edits), batch_size=100, probes=probes)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)  # one validation, at the end of the stream
    found = {name.split("/")[1]: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("probe/")}
    skills = sum(found[skill] for skill in SKILLS) / len(SKILLS)
    growth = max(float(module.master(layer).norm() / module.original(layer).norm()) for layer in module.layers)
    drift = max(
        triple_drift(module.spectra[layer], module.master(layer).detach(), energy_rank(module.spectra[layer].sigma, 0.1))
        for layer in module.layers
    )
    return {"unrelated": found["unrelated_facts"], "skills": skills, "growth": growth, "drift": drift}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_plain_memit_collapses_and_the_guard_keeps_the_dominant_triples(tmp_path):
    plain = stream(tmp_path, [])
    assert plain["unrelated"] < 0.75 and plain["skills"] < 0.90 and plain["growth"] > 2.0 and plain["drift"] > 0.5, plain
    guarded = stream(tmp_path, [REVIVE(tau=0.1)])
    assert guarded["drift"] < 1e-5, guarded
    assert guarded["skills"] > plain["skills"], (plain, guarded)
