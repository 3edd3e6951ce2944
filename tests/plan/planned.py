"""Random models large enough that their parts outweigh noise, and real runs over them that are measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from stream import write_facts
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

WIDTH, BLOCKS = 512, 4
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 8, "n_positions": 256},
    "llama": {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1536,
        "max_position_embeddings": 256,
    },
}
MEASURER, PLANNER = (Path(__file__).with_name(name) for name in ("measure.py", "plan_here.py"))


def save_model(family: str, folder: Path, vocabulary: int = 2048) -> str:
    """A random float32 model of a family with the tests' tokenizer."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPES[family], vocab_size=vocabulary, **ids))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def options(folder: Path, family: str, editor: str, edits: int, *more: str) -> list[str]:
    """The command line of a run, without its verb."""
    return [
        "--config",
        str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"),
        *("--model.pretrained", save_model(family, folder / "model")),
        *("--model.editor", editor, "--model.guards", "null", "--model.corpus", "SampledCorpus"),
        *("--model.layers", "[0,1]", "--model.moment_tokens", "4096", "--model.cache_dir", str(folder / "cache")),
        *("--model.targets.steps", "4", "--model.targets.stop_loss", "0", "--model.targets.contexts", "0"),
        *("--data.source", "null", "--data.path", write_facts(folder / "facts.jsonl", edits)),
        *("--data.batch_size", "20", "--data.probes", "null", "--run_dir", str(folder / "run")),
        *(
            "--drift.figures",
            "false",
            "--trainer.enable_progress_bar",
            "false",
            "--trainer.val_check_interval",
            "2",
            "--checkpoint.every_n_train_steps",
            "1",
        ),
        *more,
    ]


def planned(arguments: list[str], folder: Path, available: int | None = None, calibrate: bool = False) -> dict[str, Any]:
    """What the command line says of a run, in a process of its own: memory is measured there.

    Args:
        arguments: the run's.
        folder: where the plan is written.
        available: bytes that the machine is taken to have, if not its own.
        calibrate: tell seconds of the processor as well.
    """
    told = folder / "plan.json"
    here = "all" if available is None else str(available)
    more = ("--calibrate", str(calibrate).lower(), "--json", str(told))
    found = _process([str(PLANNER), here, *arguments, *more], (0,) if available is None else (0, 1))
    plan = json.loads(told.read_text(encoding="utf-8"))
    assert found == (0 if plan["fits"] else 1)
    return plan


def measured(what: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """What a real run of it took, in a process of its own.

    Args:
        what: ``counted`` step by step, ``timed`` by phase, or ``resident`` as it is.
        arguments: the run's.
        folder: where the numbers are written.
    """
    told = folder / "measured.json"
    _process([str(MEASURER), str(told), what, *arguments])
    return json.loads(told.read_text(encoding="utf-8"))


def _process(arguments: list[str], expected: tuple[int, ...] = (0,)) -> int:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode in expected, done.stderr[-3000:]
    return done.returncode
