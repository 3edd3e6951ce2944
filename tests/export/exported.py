"""Real short runs of the command line, and the models that they ended with, taken from the module and not from the export."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from stream import write_facts
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from lit_edit.__main__ import main
from lit_edit.editors import MEMIT
from lit_edit.guards import Guard
from lit_edit.module import ContinualEditor
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

TOKENS = torch.arange(2, 42).view(2, 20)
"""Two rows of tokens that every tiny model takes."""

_OPTIONS = [
    *("--model.targets.steps", "3", "--model.targets.contexts", "2", "--model.targets.context_tokens", "4"),
    *("--model.moment_tokens", "400", "--model.layers", "[0,1]", "--model.editor", "MEMIT", "--model.editor.history", "true"),
    *("--data.batch_size", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--drift.every_n_batches", "0", "--checkpoint.every_n_train_steps", "2", "--checkpoint.save_top_k", "-1"),
]


class Fading(Guard):
    """A guard of a user's own, with state: evaluation sees the less of the weights, the more changes it has let through."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passed", torch.zeros(()))

    def forward(self, layer, delta, weight):
        self.passed = self.passed + 1
        return delta

    def view(self, layer, weight):
        return weight * (1 - self.passed / 64)


@dataclass(frozen=True)
class Ran:
    """A run and its model."""

    folder: Path
    pretrained: str
    dtype: str
    guards: tuple = ()

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def base(self, dtype: str | None = None):
        return AutoModelForCausalLM.from_pretrained(self.pretrained, dtype=getattr(torch, dtype or self.dtype)).eval()

    def edited(self, checkpoint: str = "last.ckpt", evaluated: bool = True):
        """Weights by name and logits of the module, with a checkpoint's masters in it as Lightning puts them there."""
        module = ContinualEditor(self.pretrained, MEMIT(), layers=[0, 1], guards=[g() for g in self.guards], dtype=self.dtype)
        module.configure_model()
        state = SafetensorsCheckpointIO().load_checkpoint(self.folder / "checkpoints" / checkpoint)["state_dict"]
        module.load_state_dict({name: value for name, value in state.items() if name.startswith(("masters.", "guards."))})
        module.net.eval()
        if not evaluated:
            return weights(module.net), logits(module.net)
        with module.evaluated_model():
            return weights(module.net), logits(module.net)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


def same(one: dict, other: dict) -> bool:
    """Whether two models have the same weights, byte for byte."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8)) for name in one
    )


def refused(export, capsys, *arguments) -> str:
    """The one sentence."""
    assert export(*arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("lit-edit: error: "), told
    return told[0]


def make(folder: Path, family: str, dtype: str, count: int, *options: str, guards: tuple = (), **model) -> Ran:
    """A run over ``count`` facts in batches of two."""
    folder.mkdir(exist_ok=True)
    save_tiny(folder / "model", family, **model)
    facts = write_facts(folder / "facts.jsonl", count)
    arguments = ["--model.pretrained", str(folder / "model"), "--data.path", facts, "--run_dir", str(folder / "run")]
    arguments += ["--model.cache_dir", str(folder / "cache"), "--model.dtype", dtype]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-edit"])
        assert main(["fit", *arguments, *_OPTIONS, *options]) == 0
    return Ran(folder / "run", str(folder / "model"), dtype, guards)
