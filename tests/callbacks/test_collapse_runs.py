"""The guard against collapse in whole runs: one that really collapses, and one from the command line."""

import json
import sys
from pathlib import Path

import lightning as L
import pytest
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.callbacks import CollapseGuard
from lit_edit.data import EditStream, WorldFacts
from lit_edit.editors import MEMIT
from lit_edit.module import ContinualEditor
from lit_edit.probes import WorldSkill
from lit_edit.targets import TargetOptions
from lit_edit.world.corpus import WorldCorpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


def real(tmp_path, name, lam, targets):
    """120 facts of the embedded world in batches of 20, an ability scored after every second batch."""
    module = ContinualEditor(
        str(ROOT / "checkpoints" / "world-gpt2"),
        MEMIT(lam=lam),
        layers=[0, 1],
        targets=TargetOptions(steps=8, contexts=2, context_starts=("Therefore", "Because", "I", "You"), **targets),
        corpus=WorldCorpus(),
        moment_tokens=20000,
        cache_dir=str(tmp_path / "cache"),
    )
    data = EditStream(source=WorldFacts(120), batch_size=20, review=20, probes=[WorldSkill("sentiment", 60)])
    guard = CollapseGuard("probe/sentiment/accuracy/teacher_forced", below=0.7)
    run = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=str(tmp_path / name), callbacks=[guard],
        check_val_every_n_epoch=None, val_check_interval=2,
    )  # fmt: skip
    run.fit(module, datamodule=data)
    return module, guard, float(run.callback_metrics["probe/sentiment/accuracy/teacher_forced"])


@pytest.mark.slow
def test_a_run_that_really_collapses_is_stopped_and_a_sane_one_is_not(tmp_path):
    """Hardly any second moments and targets far from where the model's own values lie break the model within 80 edits."""
    broken, guard, ability = real(tmp_path, "broken", 1e-6, {"lr": 2.0, "clamp": 3.0})
    assert broken.edits < 120 and ability < 0.7 and f"after {broken.edits} edits" in guard.said
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists()
    sane, guard, ability = real(tmp_path, "sane", 300.0, {"lr": 0.5})
    assert sane.edits == 120 and ability > 0.9 and not guard.said


def test_all_three_from_the_command_line(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    base = [
        "fit", "--config", "configs/counterfact.yaml", "--model.pretrained", model,
        "--data.path", write_facts(tmp_path / "facts.jsonl", 8), "--data.batch_size", "2",
        "--model.targets.steps", "3", "--model.targets.contexts", "2", "--model.moment_tokens", "500",
        "--trainer.accelerator", "cpu", "--trainer.val_check_interval", "1", "--run_dir", "run",
        "--trainer.callbacks+=RetentionScores", "--trainer.callbacks.every_n_batches=2",
        "--trainer.callbacks+=Generations", "--trainer.callbacks.every_n_batches=2", "--trainer.callbacks.items=2",
    ]  # fmt: skip
    name = "edit/so_far/efficacy/accuracy/teacher_forced"

    def guarded(below):
        return [
            "--trainer.callbacks+=CollapseGuard", f"--trainer.callbacks.monitor={name}",
            f"--trainer.callbacks.below={below}", "--trainer.callbacks.patience=2",
        ]  # fmt: skip

    with caplog.at_level("INFO"):
        assert main([*base, *guarded(2.0)]) == 0
    assert "CollapseGuard stopped the run after 4 edits" in caplog.text
    assert main([*base, *guarded(-1.0), "--ckpt_path", "last"]) == 0
    folder = tmp_path / "run"
    found = json.loads((folder / "retention.json").read_text())
    assert [check["batches"] for check in found["checkpoints"]] == [2, 4]
    edits = [json.loads(line)["edits"] for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert sorted(set(edits)) == [4, 8] and edits == sorted(edits)
    assert json.loads((folder / "summary.json").read_text())["edits"] == 8
