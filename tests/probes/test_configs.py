"""The fragments of probes: understood, commented, complete; and a run that uses probes."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from helpers import numbers, scorer, write

import lit_edit.probes
from lit_edit.errors import EditError
from lit_edit.metrics.statistics import paired_change
from lit_edit.probes import NLI, SST2, WorldSkill

ROOT = Path(__file__).resolve().parents[2]
FRAGMENTS = sorted((ROOT / "configs" / "probes").glob("*.yaml"))


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.stem)
def test_fragments_name_and_comment_every_argument(fragment):
    text = fragment.read_text(encoding="utf-8")
    for entry in yaml.safe_load(text):
        kind = getattr(lit_edit.probes, entry["class_path"])
        assert list(inspect.signature(kind).parameters) == list(entry["init_args"]) or set(
            inspect.signature(kind).parameters
        ) == set(entry["init_args"])
        probe = kind(**entry["init_args"])
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.default is not inspect.Parameter.empty and parameter.default is not None:
                assert entry["init_args"][name] == parameter.default, "what stands in a fragment is the default"
        assert probe.name and "/" in probe.shown
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    ") and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), f"line {number + 1} has no comment"


def test_all_probes_are_reachable_by_their_short_names():
    assert all(hasattr(lit_edit.probes, name) for name in lit_edit.probes.__all__)


def test_a_stream_reads_its_probes_before_anything_is_prepared(tmp_path):
    from stream import stream

    data = stream(tmp_path, 2)
    data.probes.append(SST2(str(tmp_path / "none.jsonl")))
    with pytest.raises(EditError, match="There is no file"):
        data.setup()


def test_changes_are_paired_over_items(tmp_path):
    rows = [
        {"sentence1": f"Rome {i} is old.", "sentence2": "Rome is big.", "label": ["entailment", "not_entailment"][i % 2]}
        for i in range(30)
    ]
    probe = NLI(write(tmp_path / "nli.jsonl", rows))
    before = probe.measure(scorer(), probe.items())
    changes = paired_change(before, before, probe.summarise, resamples=30)
    assert set(changes) == set(probe.summarise(before)) and all(change.low == change.high == 0 for change in changes.values())
    worse = before.clone()
    worse[:, 1] = -1
    before[:, 1] = before[:, 0]
    assert paired_change(before, worse, probe.summarise, resamples=30)["accuracy/generated"].high == -1.0


def test_skills_of_the_world():
    probe = WorldSkill("antonym", items=5)
    rows = probe.measure(scorer(), probe.items())
    assert rows.shape == (5, 1) and rows.dtype == torch.float64
    assert numbers(probe, scorer())[probe.shown] == float(rows.mean())
