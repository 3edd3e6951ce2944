"""How a run tells how far it is: what ``--progress`` says, a callback of the user's, or what fits."""

import sys
from pathlib import Path

import pytest
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Runs ``lit-edit fit`` over two facts; returns its exit code, what it printed and what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    model, facts = save_tiny(tmp_path / "model", "gpt2"), write_facts(tmp_path / "facts.jsonl", 2)

    def run(*options):
        capsys.readouterr()
        code = main(
            [
                *("fit", "--config", str(ROOT / "configs" / "counterfact.yaml"), "--model.pretrained", str(model)),
                *("--data.path", facts, "--model.layers", "[0]", "--model.targets.steps", "2", "--model.targets.contexts", "1"),
                *("--model.moment_tokens", "300", "--trainer.accelerator", "cpu", "--data.probes", "[]", "--baseline", "false"),
                *("--drift.every_n_batches", "0", *options),
            ]
        )
        return code, *capsys.readouterr()

    return run


def test_lines_where_there_is_no_terminal(fit):
    code, out, err = fit()
    assert code == 0 and "2 edits in batches of" in out
    assert "] editing from batch 1 of 1\n" in err and "] batch 1/1, 2 edits, " in err and "\r" not in err


def test_quiet(fit):
    code, out, err = fit("--progress", "QuietProgress")
    assert code == 0 and err == "" and "2 edits in batches of" in out


def test_a_bar_of_the_users_own_takes_its_place(fit):
    code, _, err = fit("--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar", "--progress", "PlainProgress")
    assert code == 0 and "editing from batch" not in err


def test_options_of_the_class(fit):
    code, _, err = fit("--progress", "PlainProgress", "--progress.every_seconds", "0")
    assert code == 0 and "] batch 1/1, targets 1/" in err
    code, _, err = fit("--progress", "PlainProgress", "--progress.every_seconds", "-1")
    assert code != 0 and "every_seconds is -1" in err
