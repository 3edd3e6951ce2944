"""Runs a page of the documentation as its reader would: its files are written, its blocks run in order, its outputs compared."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages


def environment(folder: Path) -> dict[str, str]:
    """Where ``lit-edit`` and ``python`` are those of the tests, whatever is installed."""
    programs = folder / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, start in {"lit-edit": f"{python} -m lit_edit", "python": python}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(pages.ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """Everything a command prints; it has to end well."""
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280, check=False
    )
    printed = done.stdout.decode("utf-8", "replace").replace("\r", "\n")
    assert done.returncode == 0, f"{shlex.join(command)} ended with {done.returncode}:\n{printed[-3000:]}"
    return printed


def shell(block: pages.Block, folder: Path, env: dict[str, str]) -> str:
    """What the commands of a block print. A server is not started, but what it would show has to be there."""
    printed = ""
    for words in pages.commands(block):
        if words[0] == "tensorboard":
            logs = folder / words[words.index("--logdir") + 1]
            assert list(logs.rglob("events.out.tfevents*")), f"{block.name} looks at {logs}, where nothing was logged"
            continue
        printed += run(words, folder, env)
    return printed


def missing(expected: str, printed: str) -> list[str]:
    """The lines that a page shows and a command did not print; blanks count as one, ``...`` stands for lines left out."""
    said = {_plain(line) for line in printed.splitlines()}
    return [line for line in expected.splitlines() if _plain(line) not in said and line.strip() not in ("", "...")]


def _plain(line: str) -> str:
    """A line of a table without the interval at its end."""
    return re.sub(r"( \d\.\d{3} to \d\.\d{3})$", "", " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split()))


def page(path: Path, folder: Path) -> int:
    """Run all blocks of a page in an empty folder.

    Returns:
        The number of outputs that were compared.
    """
    env, printed, compared = environment(folder.parent / "bin"), "", 0
    for block in pages.blocks(path):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "bash":
            printed = shell(block, folder, env)
        elif block.language == "python":
            printed = run([sys.executable, "-c", block.body], folder, env)
        else:
            assert block.language == "text", f"{block.name} is of no kind that can be run or compared"
            lost = missing(block.body, printed)
            assert not lost, f"{block.name} shows {lost[0]!r}, and what came out is:\n{printed[-6000:]}"
            compared += 1
    return compared
