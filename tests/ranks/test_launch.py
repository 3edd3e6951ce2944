"""The command itself starts its ranks, and so does torchrun; nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stream import write_facts
from tiny import save_tiny

from lit_edit.parallel.launcher import Watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("launch")
    save_tiny(found / "model", "gpt2")
    write_facts(found / "facts.jsonl", 8)
    return found


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("fit", "--model.pretrained", str(folder / "model"), "--data.path", str(folder / "facts.jsonl")),
        *("--data.batch_size", "4", "--model.editor", "MEMIT", "--model.editor.lam", "10", "--model.layers", "[0,1]"),
        *("--model.targets.steps", "2", "--model.targets.contexts", "2", "--model.moment_tokens", "300"),
        *("--model.cache_dir", str(folder / "cache"), "--trainer.accelerator", "cpu", "--trainer.devices", "2"),
        *("--trainer.enable_progress_bar", "false", "--ckpt_path", "last", *more),
    ]


def environment() -> dict[str, str]:
    ranks = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def alive(run: Path) -> list[str]:
    """Processes that work on a run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(run) in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_command_starts_its_ranks_and_ends_when_one_of_them_dies(folder):
    run = folder / "run"
    slow = command(folder, "--run_dir", str(run), "--data.batch_size", "1", "--model.targets.steps", "400")
    first = subprocess.Popen(
        [sys.executable, "-m", "lit_edit", *slow],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "journal.jsonl").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    (other,) = [int(number) for number in alive(run) if int(number) != first.pid]
    os.kill(other, signal.SIGKILL)
    started = time.monotonic()
    said, _ = first.communicate(timeout=60)
    assert time.monotonic() - started < 20 and first.returncode == 2, said
    assert (
        "rank 0 of 2 lost the others (" in said
        and f"rank 1 (process {other}) ended by SIGKILL" in said
        and "Traceback" not in said
    )
    assert not alive(run)
    again = command(folder, "--run_dir", str(run), "--data.batch_size", "1", "--model.targets.steps", "2")
    ended = subprocess.run(
        [sys.executable, "-m", "lit_edit", *again], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert (run / "journal.jsonl").read_text().count("\n") == 8
    assert ended.stdout.count("Everything of this run is in") == 1, "one rank talks"


@pytest.mark.slow
def test_torchrun_starts_the_ranks(folder):
    run = folder / "torchrun"
    started = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29611",
        "-m",
        "lit_edit",
    ]
    ended = subprocess.run(
        [*started, *command(folder, "--run_dir", str(run))], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert "Starting with 2 processes" in ended.stderr and (run / "journal.jsonl").read_text().count("\n") == 2
    assert ended.stdout.count("Everything of this run is in") == 1


def process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_run_that_hangs_after_a_rank_has_ended_is_ended(capfd):
    ended, hanging = process("raise SystemExit(3)"), process("import time; time.sleep(60)")
    told = []
    watch = Watch([hanging, ended], grace=1.0, end=lambda: told.append("ended"))
    watch.start()
    watch.join(20)
    assert told == ["ended"] and hanging.wait(5) == -signal.SIGKILL
    assert f"rank 2 (process {ended.pid}) ended by exit code 3" in capfd.readouterr().err


def test_ranks_that_end_well_end_nothing(capfd):
    watch = Watch([process("pass"), process("pass")], grace=0.1, end=lambda: pytest.fail("ended"))
    watch.start()
    watch.join(20)
    assert not watch.is_alive() and capfd.readouterr().err == ""
