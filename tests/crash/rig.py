"""A small stream under the command line, killed and resumed, and compared with one that nothing happened to."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stream import write_facts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import save_tiny

from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.runs.run_folder import RunFolder

FACTS, BATCH = 10, 2


class Server:
    """The process that forks the runs."""

    script = Path(__file__).with_name("killing.py")

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
            "PYTHONWARNINGS": "ignore",
            "MKL_CBWR": "COMPATIBLE",  # or sums depend, in their last bit, on where memory happens to lie
        }
        self.process = subprocess.Popen(
            [sys.executable, str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def run(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class Rig:
    """Where runs happen, and what an untroubled one leaves behind."""

    folder: Path
    server: Server
    whole: dict[str, Any] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def build(cls, folder: Path, server: Server) -> Rig:
        save_tiny(folder / "model", "gpt2")
        write_facts(folder / "facts.jsonl", FACTS)
        rig = cls(folder, server)
        found = rig.go("whole", trace=str(folder / "trace"))
        assert found["code"] == 0, rig.said("whole")
        rig.seconds, rig.places = found["seconds"], (folder / "trace").read_text().split("\n")
        rig.whole = left_behind(folder / "whole" / "run")
        return rig

    def go(self, name: str, *more: str, **how: Any) -> dict[str, Any]:
        """Run (or go on with) the stream in a folder of its own, with a cache of its own."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        arguments = ["fit", "--model.pretrained", str(self.folder / "model"), "--data.path", str(self.folder / "facts.jsonl")]
        for option, value in {
            "run_dir": "run",
            "ckpt_path": "last",
            "data.batch_size": BATCH,
            "model.editor": "MEMIT",
            "model.editor.lam": 10,
            "model.editor.history": "true",
            "model.guards+": "REVIVE",
            "model.layers": "[0,1]",
            "model.targets.steps": 2,
            "model.targets.contexts": 2,
            "model.moment_tokens": 300,
            "model.cache_dir": "cache",
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.val_check_interval": 2,
            "checkpoint.every_n_train_steps": 2,
            "drift.figures": "false",  # which take half of the time
        }.items():
            arguments += [f"--{option}", str(value)]
        return self.server.run(arguments=[*arguments, *more], folder=str(place), said=str(place / "said"), **how)

    def said(self, name: str) -> str:
        return (self.folder / name / "said").read_text()

    def finish(self, name: str) -> None:
        """Go on with a killed run to its end, and compare all it leaves behind with the run that nothing happened to."""
        ended = self.go(name)
        assert ended["code"] == 0, self.said(name)
        compare(left_behind(self.folder / name / "run"), self.whole)
        shutil.rmtree(self.folder / name)


def left_behind(run: Path) -> dict[str, Any]:
    """Weights and state, journal, logged numbers and curves of a run, without what a clock has measured."""
    checkpoint = SafetensorsCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt")
    folder = RunFolder.open(run)
    curves = shown(run / "tensorboard")
    timeless = {"sha256", "before", "scalars", "time", "seconds", "when"}
    return {
        "weights": checkpoint["state_dict"],
        "counters": {key: checkpoint["lit_edit"][key] for key in ("position", "edits", "batches", "templates")},
        "journal": [
            {name: value for name, value in record.items() if name not in timeless}
            | {"scalars": {name: value for name, value in record["scalars"].items() if not name.startswith("time/")}}
            for record in folder.journal
        ],
        "numbers": {name: curve for name, curve in folder.batches.items() if not name.startswith("time/")},
        "validations": folder.summary["validations"],
        "summary": {key: folder.summary[key] for key in ("finished", "edits", "immediate", "before", "after", "drift")},
        "curves": {tag: points for tag, points in curves.items() if not tag.startswith("time/")},
    }


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: of what was logged twice, the later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TensorBoard's reader leaves its file to the garbage collector
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        del events
        gc.collect()
    return curves


def compare(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Bit-equal, all of it."""
    assert found["weights"].keys() == whole["weights"].keys()
    for name, value in whole["weights"].items():
        assert torch.equal(found["weights"][name], value), name
    for part in ("counters", "journal", "numbers", "validations", "summary", "curves"):
        assert found[part] == whole[part], part
