"""NaN and Inf at every stage of every editor: the batch is undone to the last bit, recorded, and the stream goes on.

One stream per editor: a clean batch, the bad ones of two stages, a clean one, and so on. It must end where the same stream ends
that never held the bad batches. Editors that take requests in order refuse the first request of a bad batch and write the other.
"""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from methods import IN_ORDER, METHODS, STATELESS, editor, fit, leave_out, stages
from poison import Leaky, Poison, Watch, injected
from stream import facts
from torch import Tensor

import lit_edit.editors
from lit_edit.editors import MEMIT, Editor
from lit_edit.errors import Rejected

NUMBERS = {"nan": math.nan, "inf": math.inf, "1e9": 1e9}

REASONS = {
    "targets": r"the target values of layer \d are not finite",
    "keys": r"the keys of layer \d are not finite",
    "values": r"the values of layer \d are not finite",
    # DeltaEdit takes its directions through a norm behind the MLP before it aims at anything.
    "residuals": r"the (residuals|target values) of layer \d are not finite",
    "inputs": r"the inputs of layer \d are not finite",
    "gradients": r"the gradients of layer \d are not finite|the gradient of \S*h\.\d\S* is not finite in epoch 1",
    "loss": r"the gradients of layer \d are not finite|the loss of the fine-tuning is (nan|inf) in epoch 1",
    "solve": r"the change solved for layer \d is not finite",
    "singular": r"the solve of (layer \d|a batch of 2 requests) failed: linalg\.cholesky",
    "guard": r"what Leaky left of the change of layer \d is not finite",
    "state": r"the state that \w+ would carry on \(\S+\) is not finite",
    "guard state": r"the state that Leaky would carry on \(calls\) is not finite",
    "budget": r"the change of layer \d is \S+ times its original norm, over the budget of 100",
}


def kinds(stage: str) -> list[str]:
    return {"singular": ["nan"], "budget": ["1e9"]}.get(stage, ["nan", "inf"])


CASES = [(method, stage, kind) for method in METHODS for stage in stages(method) for kind in kinds(stage)]


@dataclass
class Run:
    """What became of a stream."""

    module: object
    records: list[dict]
    places: dict[tuple[str, str], int]
    around: list[tuple[dict[str, str], dict[str, str]]]
    unfired: set


def plan(method: str) -> tuple[dict[tuple[str, str], int], int]:
    """Which batch is bad in which way, and how many there are."""
    places, count = {}, 1
    for number, stage in enumerate(stages(method)):
        for kind in kinds(stage):
            places[stage, kind] = count
            count += 1
        count += number % 2 and method not in IN_ORDER  # where the second request of a bad batch is written, that is enough
    return places, count + 1


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run per editor with all bad batches, and one without them; each is made once."""
    made: dict[str, tuple[Run, object]] = {}

    def run(method: str) -> tuple[Run, object]:
        if method not in made:
            made[method] = poisoned(method), spared(method)
        return made[method]

    def poisoned(method: str) -> Run:
        places, count = plan(method)
        poison = Poison({at: (stage, NUMBERS[kind]) for (stage, kind), at in places.items()})
        module, watch = editor(tiny, method, (Leaky(poison),), max_change=100.0), Watch(poison)
        with injected(poison, module):
            fit(module, tmp_path_factory.mktemp(method), facts(2 * count), (watch,))
        unfired = {fault for fault in poison.faults.values() if str(fault) not in set(map(str, poison.fired))}
        return Run(module, module.journal.records(), places, watch.around, unfired)

    def spared(method: str):
        places, count = plan(method)
        bad = set(places.values())
        rows = facts(2 * count)
        module = editor(tiny, method, (Leaky(Poison({})),))
        if method in IN_ORDER:
            leave_out(module, {str(2 * at) for at in bad})
        else:
            rows = [row for index, row in enumerate(rows) if index // 2 not in bad]
        fit(module, tmp_path_factory.mktemp(method), rows)
        return module

    return run


def test_every_editor_is_here():
    named = {name for name in lit_edit.editors.__all__ if not getattr(lit_edit.editors, name).__abstractmethods__}
    assert named - {"PreservingEditor"} == set(METHODS)  # a base that needs no more methods


@pytest.mark.parametrize(("method", "stage", "kind"), CASES)
def test_a_bad_number_costs_its_batch_and_nothing_else(runs, method, stage, kind):
    run, _ = runs(method)
    assert not run.unfired, "a number that was never put in proves nothing"
    at = run.places[stage, kind]
    record, (before, after) = run.records[at], run.around[at]
    cases = [request["id"] for request in record["requests"]]
    if method in IN_ORDER:
        (refused,) = record["set_aside"]
        assert record["rejected"] is None and record["cases"] == cases[1:]
        assert re.search(REASONS[stage], refused["reason"]), refused["reason"]
        return
    assert record["cases"] == [] and record["edits"] == run.records[at - 1]["edits"]
    assert re.search(REASONS[stage], record["rejected"]), record["rejected"]
    assert before == after


@pytest.mark.parametrize("method", METHODS)
def test_the_stream_goes_on_as_if_it_had_never_held_the_bad_batches(runs, method):
    run, spared = runs(method)
    good = [record for number, record in enumerate(run.records) if number not in run.places.values()]
    assert len(good) > 1 and all(len(record["cases"]) == 2 and record["rejected"] is None for record in good)
    for layer in spared.layers:
        assert torch.isfinite(spared.master(layer)).all() and not torch.equal(spared.master(layer), spared.original(layer))
        assert torch.equal(run.module.master(layer), spared.master(layer))
        assert torch.equal(run.module.anatomy.weight(layer), spared.anatomy.weight(layer))
    ours, theirs = dict(run.module.editor.named_buffers()), dict(spared.editor.named_buffers())
    assert ours.keys() == theirs.keys() and (method in STATELESS) == (not ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert float(run.module.guards[0].calls) == float(spared.guards[0].calls) > 0


class Drawing(MEMIT):
    """Draws random numbers for every change, and fails at one of them."""

    bad = -1
    solves = 0

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, *args: object, **kwargs: object):
        residuals = residuals * (1 + torch.rand(()))
        self.solves += 1
        if self.solves == self.bad:
            raise Rejected("on purpose")
        return super().solve(layer, keys, residuals, *args, **kwargs)


class DrawingInOrder(Drawing):
    """The same, one request after the other."""

    in_order = True


@pytest.mark.parametrize("kind", [Drawing, DrawingInOrder])
def test_what_is_undone_has_drawn_no_random_numbers(tiny, tmp_path, kind: type[Editor]):
    found = []
    for name, bad in (("bad", 4), ("spared", -1)):
        method = kind(lam=10.0)
        method.bad = bad  # the second layer of the second batch, or of the second request
        rows = facts(6)
        module = editor(tiny, method)
        if kind is DrawingInOrder and name == "spared":
            leave_out(module, {"1"})
        elif name == "spared":
            rows = rows[:2] + rows[4:]
        torch.manual_seed(3)
        fit(module, tmp_path / name, rows)
        found.append((module, torch.get_rng_state()))
    (module, ended), (spared, expected) = found
    assert module.edits == spared.edits == (5 if kind is DrawingInOrder else 4)
    assert torch.equal(ended, expected)
    assert all(torch.equal(module.master(layer), spared.master(layer)) for layer in module.layers)


def test_targets_without_a_solution_cost_their_batch(tiny, tmp_path):
    class Unsolvable(MEMIT):
        aims = 0

        def targets(self, bench, rows):
            self.aims += 1
            if self.aims == 2:
                raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")
            return super().targets(bench, rows)

    module = editor(tiny, Unsolvable(lam=10.0))
    fit(module, tmp_path, facts(6))
    reasons = [record["rejected"] for record in module.journal.records()]
    assert reasons == [None, "linalg.eigh: the algorithm failed to converge", None]


def test_changes_that_overflow_where_the_model_shows_them_are_rejected(tiny, tmp_path):
    """Finite in the float32 master, infinite in a float16 model."""

    class Large(MEMIT):
        batches = 0

        def solve(self, *args, **kwargs):
            delta = super().solve(*args, **kwargs)
            self.batches += 1
            delta.left.mul_(1e6 if self.batches == 3 else 1.0)
            return delta

    module = editor(tiny, Large(lam=10.0), dtype="float16", moment_tokens=1000)
    fit(module, tmp_path, facts(6))
    reasons = [record["rejected"] for record in module.journal.records()]
    assert reasons == [None, "the weight of layer 0 with its change is not finite in float16", None]
