"""``lit-edit fit`` over an edit set, with little work."""

from pathlib import Path

from lit_edit.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
FAST = [
    "--model.targets.steps",
    "3",
    "--model.targets.contexts",
    "2",
    "--model.moment_tokens",
    "500",
    "--trainer.accelerator",
    "cpu",
]


def run(*arguments: str) -> int:
    return main([*arguments])


def over(model: str, path: str) -> list[str]:
    """Arguments of an edit run over an edit set with the general configuration."""
    return ["fit", "--config", "configs/counterfact.yaml", "--model.pretrained", model, "--data.path", path]
