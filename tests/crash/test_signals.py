"""SIGTERM, Ctrl-C and a scheduler's warning end a run in good order, and ``--ckpt_path last`` goes on from there."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from rig import compare, left_behind

from lit_edit.runs.checkpoint_folder import newest

AT = {
    "in the walk": ("walk: before a layer is written", 5),
    "between step and journal": ("batch: applied, before the journal has it", 3),
    "between journal and commit": ("batch: in the journal, before it is committed", 3),
    "in a validation": ("validation: before its numbers", 2),
    "in a save": ("checkpoint: written, before it is flushed", 1),
}


SHORT = (("in the walk", 15), ("between journal and commit", 15), ("in a validation", 15), ("between step and journal", 2))
EVERY = [
    pytest.param(when, number, id=f"{number.name}-{when}", marks=() if (when, int(number)) in SHORT else pytest.mark.long)
    for when in AT
    for number in (signal.SIGTERM, signal.SIGINT)
]


@pytest.mark.parametrize(("when", "number"), EVERY)
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_rest_follows_bit_equal(rig, when, number):
    name = f"{number}-{when}".replace(" ", "-")
    ended = rig.go(name, at=list(AT[when]), signal=int(number))
    assert ended["code"] == {signal.SIGTERM: 143, signal.SIGINT: 1}[number], rig.said(name)
    said = rig.said(name)
    assert "go on with: --run_dir run --ckpt_path last" in said and "Traceback" not in said
    records = (rig.folder / name / "run" / "journal.jsonl").read_text().count("\n")
    found = newest(rig.folder / name / "run" / "checkpoints")
    # Every batch that was written is in the checkpoint, whether it was due or not; the journal may be one ahead of it.
    assert found is not None and found.batches >= {"in the walk": 2, "in a save": 2, "in a validation": 2}.get(when, 3)
    assert records - found.batches in (0, 1)
    rig.finish(name)


def test_sigterm_is_not_forgotten_while_the_unedited_model_is_scored(rig):
    ended = rig.go("early", at=["validation: before its numbers", 1], signal=int(signal.SIGTERM))
    assert ended["code"] == 143 and "ended by SIGTERM" in rig.said("early")
    assert newest(rig.folder / "early" / "run" / "checkpoints") is None
    rig.finish("early")


def test_under_slurm_the_job_is_put_back_into_the_queue(rig, tmp_path):
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    environment = {
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "edits",
        "SLURM_JOB_ID": "4711",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
    }
    at = ["walk: before a layer is written", 5]
    ended = rig.go("slurm", at=at, signal=int(signal.SIGUSR1), environment=environment)
    assert ended["code"] == 128 + signal.SIGUSR1, rig.said("slurm")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list((rig.folder / "slurm").glob("**/hpc_ckpt*")), "nothing is saved inside of a signal handler"
    assert newest(rig.folder / "slurm" / "run" / "checkpoints").batches == 2
    rig.finish("slurm")


def test_a_run_killed_before_its_first_checkpoint_begins_again_and_says_so(rig):
    killed = rig.go("first", at=["batch: in the journal, before it is committed", 2])
    journal = rig.folder / "first" / "run" / "journal.jsonl"
    assert killed["code"] == -9 and journal.read_text().count("\n") == 2
    assert rig.go("first")["code"] == 0
    assert "run/checkpoints holds no checkpoint yet, so this run starts from the beginning" in rig.said("first")
    assert [json.loads(line)["batch"] for line in journal.read_text().splitlines()] == [0, 1, 2, 3, 4]
    compare(left_behind(rig.folder / "first" / "run"), rig.whole)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(rig):
    assert rig.go("torn", at=["batch: before its step", 5])["code"] == -9
    kept = rig.folder / "torn" / "run" / "checkpoints"
    last = (kept / "last.ckpt").read_bytes()
    (kept / "last.ckpt").write_bytes(last[: len(last) // 2])  # both names of it
    refused = rig.go("torn", "--ckpt_path", "run/checkpoints/batch-step=4.ckpt")
    assert refused["code"] == 2 and "batch-step=4.ckpt is damaged" in rig.said("torn")
    assert rig.go("torn")["code"] == 0
    said = rig.said("torn")
    assert "last.ckpt is damaged" in said and "using run/checkpoints/batch-step=2.ckpt, after 2 batches" in said
    compare(left_behind(rig.folder / "torn" / "run"), rig.whole)


def test_last_is_renewed_where_the_run_was_killed_before_it_could_be(rig):
    often = rig.places.count("checkpoint: before it has its other name")
    assert rig.go("stale", at=["checkpoint: before it has its other name", often])["code"] == -9
    kept = rig.folder / "stale" / "run" / "checkpoints"
    assert not (kept / "last.ckpt").samefile(kept / "batch-step=5.ckpt")
    rig.finish("stale")  # which finds nothing left to do, and looks at last.ckpt


REFUSED = {
    "editor": (("--model.editor", "EMMET"), "another editor: MEMIT instead of EMMET"),
    "guards": (("--model.guards", "[]"), "another guards"),
    "layers": (("--model.layers", "[0]"), "another layers"),
    "revision": (("--model.revision", "v2"), "another revision: None instead of v2"),
    "batch size": (("--data.batch_size", "5"), "with batch_size 2, this run has 5"),
    "history": (("--model.editor.history", "false"), "resume with the options of editor and guards"),
}


@pytest.fixture(scope="module")
def stopped(rig):
    assert rig.go("stopped", at=["batch: before its step", 4], signal=int(signal.SIGTERM))["code"] == 143
    return rig


@pytest.mark.parametrize("what", REFUSED)
def test_another_run_is_refused_by_name(stopped, what):
    arguments, sentence = REFUSED[what]
    said = Path(stopped.folder, "stopped", "said")
    said.write_text("")
    assert stopped.go("stopped", *arguments)["code"] == 2
    assert sentence in said.read_text().splitlines()[-1]


def test_changed_harmless_settings_are_named_in_one_line(stopped):
    changed = ("--model.targets.steps", "3", "--model.guards.tau", "0.2", "--trainer.log_every_n_steps", "2")
    assert stopped.go("stopped", *changed)["code"] == 0
    line = next(line for line in stopped.said("stopped").splitlines() if line.startswith("Other settings"))
    assert (
        "model.targets.steps: 2 -> 3" in line
        and "trainer.log_every_n_steps: 1 -> 2" in line
        and "model.guards.0.tau: 0.1 -> 0.2" in line
    )
    assert "ckpt_path" not in line and "run_dir" not in line
