"""What the studies of this folder run on."""

import pytest
import yaml
from handmade import GUARD
from stream import write_facts
from tiny import TEXT, save_tiny

from lit_edit.probes import Perplexity


@pytest.fixture
def base(tmp_path):
    """A base configuration that is only named, never run."""
    path = tmp_path / "base.yaml"
    path.write_text("model: {}\n")
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, eight facts about it, and a base configuration."""
    folder = tmp_path_factory.mktemp("streams")
    config = {
        "model": {
            "pretrained": str(save_tiny(folder / "model", "gpt2")),
            "layers": [0, 1],
            "editor": {"class_path": "MEMIT", "init_args": {"lam": 10.0}},
            "targets": {"steps": 3, "contexts": 1, "context_tokens": 4},
            "moment_tokens": 500,
            "cache_dir": str(folder / "cache"),
        },
        "data": {
            "path": write_facts(folder / "facts.jsonl", 8),
            "batch_size": 2,
            "order": "shuffled",
            "probes": [{"class_path": "Perplexity", "init_args": {"limit": 2}}],
        },
        "trainer": {"val_check_interval": 2},
        "checkpoint": {"every_n_train_steps": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    (folder / "guards").mkdir()
    (folder / "guards" / "revive.yaml").write_text(yaml.safe_dump(GUARD))
    study = {
        "base": "base.yaml",
        "arms": {"MEMIT": {"model.guards": None}, "guarded": {"model.guards": "guards/revive.yaml"}},
        "seeds": [0, 1],
        "options": {"data.seed": "$seed"},
        "unrelated": "none",
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models, by family."""
    return {family: str(save_tiny(tmp_path_factory.mktemp(family), family)) for family in ("gpt2", "llama")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The perplexity of a few sentences."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(TEXT))
    return Perplexity(str(path))
