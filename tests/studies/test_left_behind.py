"""Workers of a study end with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 120.0


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc, which this system lacks")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_with_their_study(tmp_path, number, code):
    words = [sys.executable, "-m", "lit_edit", "study", "naps.Naps", "--numbers", "[1, 2]", "--workers", "[cpu, cpu]"]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": path}
        study = subprocess.Popen(
            [*words, "--run_dir", str(tmp_path / "run")], env=environment, stderr=file, start_new_session=True
        )
    workers = []
    try:
        assert until(lambda: len([*tmp_path.rglob("pid")]) == 2), "both workers measure"
        workers = [int(file.read_text()) for file in tmp_path.rglob("pid")]
        # A terminal sends Ctrl-C to all that run in it.
        os.killpg(study.pid, number) if number == signal.SIGINT else study.send_signal(number)
        assert study.wait(SECONDS) == code
        assert until(lambda: not any(alive(pid) for pid in workers)), "nobody computes on for a study that is gone"
        told = {signal.SIGINT: "ended by Ctrl-C", signal.SIGTERM: "ended by SIGTERM"}.get(number, "")
        assert told in said.read_text() and "Traceback" not in said.read_text()
    finally:
        study.kill()
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
