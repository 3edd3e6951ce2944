"""A folder of made-up facts, templates and text, small enough to train on in a second."""

import json
from random import Random

import pytest

TEMPLATES = {
    "P1": {
        "counterfact_templates": {"{} lives in": 3, "The home of {} is": 2, "{}, who lives in": 1},
        "pararel_patterns": [
            "[X] lives in [Y] .",
            "[X] is at home in [Y] .",
            "[Y] is the home of [X].",
            "[X], a [Y]-born person.",
        ],
    },
    "P2": {"counterfact_templates": {"{} speaks": 5, "The language of {} is": 5}, "pararel_patterns": []},
    "P3": {"counterfact_templates": {}, "pararel_patterns": ["[X] borders [Y]."]},
}
OBJECTS = {"P1": ("Paris", "London", "Rome"), "P2": ("French", "Latin")}
FIRST, LAST = ("Ada", "Bela", "Cyril", "Dora", "Emil"), ("Stone", "Rivers", "Field", "Wood")


@pytest.fixture
def folder(tmp_path):
    """Twenty people with two facts each."""
    rng, root = Random(0), tmp_path / "data"
    (root / "facts").mkdir(parents=True)
    (root / "corpus").mkdir()
    rows = [
        {"relation_id": r, "subject": f"{a} {b}", "object": rng.choice(OBJECTS[r]), "counterfact_case_ids": [1]}
        for r in OBJECTS
        for a in FIRST
        for b in LAST
    ]
    (root / "facts/true_facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "facts/relation_templates.json").write_text(json.dumps(TEMPLATES))
    words = ("river", "stone", "walked", "slowly", "under", "the", "old", "bridge", "and", "waited")
    for name, n in (("novel", 40), ("wikitext2_valid", 4)):
        lines = [" ".join(rng.choices(words, k=30)).capitalize() + ". The end." for _ in range(n)]
        (root / f"corpus/{name}.txt").write_text("\n<|doc|>\n".join(lines))
    return root


@pytest.fixture
def options(folder, tmp_path):
    """Options of the command that make it small."""
    return {
        "config": "configs/pretrain_facts.yaml", "data.folder": folder, "model.export_to": tmp_path / "model", "model.width": 32,
        "model.layers": 3, "model.heads": 2, "model.inner": 64, "model.written": "[0,1]", "model.warmup": 2,
        "trainer.max_steps": 6, "trainer.val_check_interval": 6, "trainer.enable_progress_bar": "false", "trainer.precision": "32-true",
        "trainer.accelerator": "cpu", "data.batches": 6, "data.documents": 24, "data.row_length": 64, "data.vocabulary": 600,
        "data.tokenizer_characters": 2000, "data.held_out": 0.3, "checkpoint_every": 4,
    }  # fmt: skip


@pytest.fixture
def words(options):
    """The same as a command line; named options replace the given ones."""

    def line(**more):
        chosen = options | {name.replace("__", "."): value for name, value in more.items()}
        return [part for key, value in chosen.items() for part in (f"--{key}", str(value))]

    return line
