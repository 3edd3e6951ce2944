"""Settings that a plan advises fit by measurement; its seconds are those of a run within a factor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from planned import measured, options, planned

from lit_edit.plan.result import OUTSIDE

MEMIT = '{"class_path": "MEMIT", "init_args": {"history": true}}'
FACTOR = 3.0
"""How far seconds of a phase may be off, as docs/plan.md has it."""
PHASES = {
    "prepare": ("contexts", "second moments", "spectra", "factorisation"),
    "targets": ("targets",),
    "walk": ("keys", "solves"),
    "evaluate": ("evaluation",),
}


@pytest.mark.slow
def test_the_advised_number_of_requests_at_once_fits(tmp_path: Path):
    """A batch of 128 whose targets take most; the plan is told of a machine with half of their room."""
    arguments = [
        *options(tmp_path, "gpt2", MEMIT, 128, "--data.batch_size", "128", "--baseline", "false", "--final", "false"),
        *("--model.targets.requests_at_once", "128", "--model.targets.contexts", "5", "--model.moment_tokens", "2100"),
    ]
    whole = {one["name"]: one["bytes"] for one in planned(arguments, tmp_path)["memory"]["phases"]}
    others = max(size for name, size in whole.items() if name != "targets")
    assert whole["targets"] > 1.3 * others
    machine = int(OUTSIDE * (others + whole["targets"]) / 2)
    plan = planned(arguments, tmp_path, machine)
    assert not plan["fits"]
    (said,) = [found for one in plan["advice"] if (found := re.match(r"--model.targets.requests_at_once (\d+)", one))]
    advised = int(said[1])
    assert 1 <= advised < 128
    changed = [*arguments, "--model.targets.requests_at_once", str(advised)]
    assert planned(changed, tmp_path, machine)["fits"]
    assert measured("resident", changed, tmp_path)["resident"] <= machine
    more = [*arguments, "--model.targets.requests_at_once", str(2 * advised)]
    assert not planned(more, tmp_path, machine)["fits"]  # the nearest one, not any


@pytest.mark.slow
def test_seconds_of_every_phase_are_within_a_factor(tmp_path: Path):
    """By the clock of the processor and one thread, on both sides: what else the machine does hardly counts."""
    arguments = options(tmp_path, "gpt2", MEMIT, 60)
    plan = planned(arguments, tmp_path, calibrate=True)
    run = measured("timed", arguments, tmp_path)["seconds"]
    for name, phases in PHASES.items():
        said = sum(one["seconds"] for one in plan["work"] if one["phase"] in phases)
        assert run[name] / FACTOR < said < run[name] * FACTOR, (name, said, run[name])
