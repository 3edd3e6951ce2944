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
MEASURER = Path(__file__).with_name("measure.py")


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
        *("--model.targets.steps", "4", "--model.targets.stop_loss", "0", "--model.targets.context_starts", "[Therefore]"),
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


def plan(arguments: list[str], folder: Path) -> dict[str, Any]:
    """What the command line says of a run, as it writes it."""
    from lit_edit.__main__ import main

    told = folder / "plan.json"
    assert main(["plan", *arguments, "--calibrate", "false", "--json", str(told)]) == 0
    return json.loads(told.read_text(encoding="utf-8"))


def measured(what: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """What a real run of it took, in a process of its own."""
    told = folder / "measured.json"
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, str(MEASURER), str(told), what, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(told.read_text(encoding="utf-8"))
