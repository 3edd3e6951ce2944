"""Protocols and uncertainty of a run, as its summary and table tell them."""

import json
import sys
from pathlib import Path

import pytest

from lit_edit.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--run_dir", "run"),
        *("--model.pretrained", str(ROOT / "checkpoints" / "world-gpt2"), "--model.moment_tokens", "3000"),
        *("--model.guards", "null", "--model.targets.steps", "8", "--model.targets.contexts", "1", "--model.editor.lam", "30"),
        *("--data.source.n", "12", "--data.batch_size", "4", "--trainer.accelerator", "cpu"),
        *("--data.probes", "[{class_path: WorldUnrelated, init_args: {items: 60}}]"),
        *options,
    ]
    assert main(arguments) == 0
    return json.loads(Path("run/summary.json").read_text())


def test_every_number_says_when_it_was_measured_and_how_sure_it_is(tmp_path, monkeypatch, capsys):
    summary = run(tmp_path, monkeypatch, "--data.review", "5", "--trainer.val_check_interval", "1")
    table = capsys.readouterr().out
    protocols = [{name.split("/")[1] for name in row["scores"] if name.startswith("edit/")} for row in summary["validations"]]
    assert protocols == [{"before"}, {"so_far"}, {"so_far"}, {"final"}], "all edits, not the sample of five, at the end"
    success = "edit/final/efficacy/success/teacher_forced"
    low, high = summary["intervals"][success]
    assert 0 <= low <= summary["after"][success] <= high <= 1 and high - low > 0.05, "twelve edits leave room for doubt"
    assert "edit/final/score/success/teacher_forced" in summary["after"]
    assert set(summary["immediate"]) <= set(summary["intervals"]) | {
        name for name in summary["immediate"] if "/difference/" in name or "/score/" in name
    }
    probe = "probe/unrelated_facts/accuracy/teacher_forced"
    change = summary["after"][probe] - summary["before"][probe]
    low, high = summary["changes"][probe]
    assert low <= change <= high
    for told in ("final", "immediate", "score", "95 %", "change ", "harmonic mean"):
        assert told in table


def test_without_the_final_scoring_the_last_sample_stands(tmp_path, monkeypatch):
    summary = run(tmp_path, monkeypatch, "--data.review", "5", "--final", "false", "--trainer.val_check_interval", "3")
    assert {name.split("/")[1] for name in summary["after"] if name.startswith("edit/")} == {"so_far"}


def test_changes_survive_a_resume(tmp_path, monkeypatch):
    options = ("--checkpoint.every_n_train_steps", "1", "--trainer.val_check_interval", "1")
    run(tmp_path, monkeypatch, *options, "--trainer.max_steps", "2")
    resumed = run(tmp_path, monkeypatch, *options, "--ckpt_path", "last")
    whole = run(tmp_path, monkeypatch, *options, "--run_dir", "run")  # goes to a folder of its own
    whole = json.loads(Path("run-2/summary.json").read_text())
    assert resumed["changes"] == whole["changes"] and resumed["changes"]
    assert resumed["after"] == pytest.approx(whole["after"], abs=0)
    assert resumed["intervals"] == whole["intervals"]
