"""What a plan says against what a run then uses."""

from pathlib import Path

import pytest
from planned import measured, options, planned

pytestmark = pytest.mark.slow

MEMIT = '{"class_path": "MEMIT", "init_args": {"history": true}}'


def close(found: float, wanted: float, share: float) -> None:
    assert abs(found - wanted) <= share * wanted, (found, wanted)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Plan and run of a GPT-2 of 512 dimensions, step by step; and a plan afterwards, when the cache is full."""
    folder = tmp_path_factory.mktemp("gpt2")
    arguments = options(folder, "gpt2", MEMIT, 60)
    plan = planned(arguments, folder)
    return plan, measured("counted", arguments, folder), planned([*arguments, "--hash", "true"], folder)


def part(plan, phase, *names):
    (found,) = [one for one in plan["memory"]["phases"] if one["name"] == phase]
    return sum(one["bytes"] for one in found["parts"] if one["name"] in names)


def work(plan, *names):
    return sum(one["operations"] - one["factors"] for one in plan["work"] if one["phase"] in names)


def test_what_the_editor_keeps_is_known_to_the_byte(counted):
    plan, run, _ = counted
    assert part(plan, "walk", "history") == run["buffers"]
    assert part(plan, "walk", "inverses") == run["inverses"]
    assert part(plan, "walk", "history, applied") == run["applied"]


def test_live_tensors_of_every_phase(counted):
    plan, run, _ = counted
    targets = part(plan, "targets", "activations of the targets", "logits of the targets")
    close(targets, run["peaks"]["targets"], 0.1)
    close(part(plan, "evaluate", "evaluation"), run["peaks"]["evaluate"], 0.1)
    close(part(plan, "prepare", "sums of second moments", "moments pass"), run["peaks"]["prepare"], 0.15)
    walk = part(plan, "walk", "changes", "hidden states of the keys", "passes and solve")
    close(walk + part(plan, "walk", "last batch"), run["peaks"]["walk"], 0.2)


def test_operations_of_every_phase(counted):
    plan, run, _ = counted
    done = run["operations"]
    close(work(plan, "targets"), done["targets"], 0.1)
    close(work(plan, "keys", "solves"), done["walk"], 0.2)
    close(work(plan, "evaluation"), done["evaluate"], 0.2)
    close(work(plan, "contexts", "second moments", "spectra", "factorisation"), done["prepare"], 0.2)


def test_what_is_written(counted):
    plan, run, _ = counted
    disk = {one["name"]: one["bytes"] for one in plan["disk"]["parts"]}
    close(disk["journal"], run["journal"], 0.05)
    close(disk["checkpoints"] / 3, run["newest"], 0.01)  # two that stay and one being written
    close(disk["checkpoints"] * 2 / 3, run["checkpoints"], 0.05)
    close(disk["logs"], run["logs"], 0.3)


def test_directions_that_a_null_space_editor_protects_are_counted_from_the_cache(tmp_path: Path):
    """A plan before the first run takes half of them; one behind it knows them, and so what solves and projectors take."""
    editor = '{"class_path": "AlphaEdit", "init_args": {"threshold": 0.002}}'
    arguments = options(tmp_path, "llama", editor, 60)
    before = planned(arguments, tmp_path)
    run = measured("counted", arguments, tmp_path)
    after = planned([*arguments, "--hash", "true"], tmp_path)
    assert any("taken to protect 50%" in note for note in before["notes"])
    assert any("as the second moments in the cache have it" in note for note in after["notes"])
    assert part(after, "walk", "inverses") == pytest.approx(run["inverses"], rel=0.01)
    assert part(before, "walk", "inverses") != pytest.approx(run["inverses"], rel=0.1)
    close(work(after, "keys", "solves"), run["operations"]["walk"], 0.2)
    close(part(after, "walk", "history, applied"), run["applied"], 0.01)
    walk = part(after, "walk", "changes", "hidden states of the keys", "passes and solve", "last batch")
    close(walk, run["peaks"]["walk"], 0.2)


def test_what_is_cached_is_found_by_the_run_s_own_identities(counted):
    before, _, after = counted
    assert [(one["name"], set(one["layers"].values())) for one in before["cached"]] == [
        ("second moments", {False}),
        ("spectra", {False}),
    ]
    assert [(one["name"], one["layers"]) for one in after["cached"]] == [
        ("second moments", {"0": True, "1": True}),
        ("spectra", {"0": True, "1": True}),
    ]
    assert "second moments" not in {one["phase"] for one in after["work"]}
    written = {one["name"] for one in after["disk"]["parts"]}
    assert not written & {"second moments in the cache", "spectra in the cache"}


def test_the_memory_of_the_whole_process(tmp_path: Path):
    arguments = options(tmp_path, "llama", MEMIT, 40, "--baseline", "false")
    plan = planned(arguments, tmp_path)
    run = measured("resident", arguments, tmp_path)
    close(max(one["bytes"] for one in plan["memory"]["phases"]), run["resident"], 0.2)
    bare = next(one["bytes"] for one in plan["memory"]["phases"][0]["parts"] if one["name"].startswith("interpreter"))
    assert run["resident"] - bare > 0.2 * run["resident"]  # the parts of the run are not lost in the libraries
