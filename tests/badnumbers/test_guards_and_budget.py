"""Guards on weights and changes that are singular, and bounds on norms; test_injected.py has what is over the budget."""

import math
import re

import pytest
import torch
from methods import METHODS, editor, fit
from stream import facts
from tiny import normal

import lit_edit.guards
from lit_edit.delta import Delta
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.guards import L2SP, PRUNE, RECT, REVIVE, SPHERE, Guard, NormCap, RandomSubspace
from lit_edit.spectrum import decompose

GUARDS = {
    "L2SP": lambda: L2SP(rho=0.7),
    "NormCap": lambda: NormCap(per_batch=0.5, of_original=0.2),
    "PRUNE": lambda: PRUNE(mode="persistent"),
    "PRUNE-view": lambda: PRUNE("linear"),
    "RECT": lambda: RECT(keep=0.4),
    "RECT-deferred": lambda: RECT(keep=0.4, defer=True, epsilon=1e-8, rule="threshold"),
    "REVIVE": lambda: REVIVE(),
    "REVIVE-compact": lambda: REVIVE(basis="compact", energy="sigma2", rule="released"),
    "REVIVE-constrain": lambda: REVIVE(mode="constrain", of="current"),
    "RandomSubspace": lambda: RandomSubspace(k=3),
    "SPHERE": lambda: SPHERE(),
    "SPHERE-output": lambda: SPHERE(side="output", alpha=1.0),
}

WEIGHTS = {
    "zero": torch.zeros(8, 12),
    "rank one": torch.outer(normal(8), normal(12)).float(),
    "all singular values equal": torch.linalg.qr(normal(12, 8)).Q.T.float(),
    "an empty row": torch.cat([torch.zeros(1, 12), normal(7, 12).float()]),
}

CHANGES = {
    "nothing": Delta.low_rank(torch.zeros(8, 0).double(), torch.zeros(0, 12).double()),
    "zero": Delta.low_rank(torch.zeros(8, 2).double(), normal(2, 12)),
    "dense zero": Delta.from_dense(torch.zeros(8, 12)),
    "of rank one, many times": Delta.low_rank(normal(8, 1).expand(8, 30), normal(1, 12).expand(30, 12)),
    "tiny": Delta.from_dense(1e-300 * normal(8, 12)),
    "huge": Delta.low_rank(1e18 * normal(8, 2), 1e18 * normal(2, 12)),
    "into an empty row": Delta.from_dense(normal(8, 12, seed=4)),
}


def test_every_guard_is_here():
    named = {name for name in lit_edit.guards.__all__ if name != "Guard"}
    assert named == {name.partition("-")[0] for name in GUARDS}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_leaves_numbers_of_a_number_or_refuses_the_weight(name, weight):
    guard, weight_OI = GUARDS[name](), WEIGHTS[weight]
    try:
        guard.prepare(0, weight_OI, decompose(weight_OI))
    except EditError as error:
        assert weight in ("zero", "rank one") and name.startswith(("PRUNE", "REVIVE")), error
        assert re.search("all singular values .* are zero|protects all", str(error)), error
        return
    for what, change in CHANGES.items():
        guard.avoid(0, weight_OI)
        left = guard(0, change, weight_OI)
        assert left.is_finite() and torch.isfinite(left.dense()).all(), what
        assert all(math.isfinite(value) for value in guard.report(0, change, left).values()), what
        assert torch.isfinite(guard.view(0, weight_OI)).all()


@pytest.mark.filterwarnings("ignore:20 requests of one batch share a key but not an answer:UserWarning")
@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_over_equal_keys_conflicts_and_more_requests_than_inputs(narrow, tmp_path, name):
    equal = [{**row, "subject": "Ada Lovelace"} for row in facts(20)]
    module = editor(narrow, "MEMIT", (GUARDS[name](),))
    fit(module, tmp_path, equal + facts(20), batch_size=20)
    assert [(len(r["cases"]), r["rejected"]) for r in module.journal.records()] == [(20, None), (20, None)]
    for layer in module.layers:
        assert torch.isfinite(module.master(layer)).all() and not torch.equal(module.master(layer), module.original(layer))


# ------------------------------------------------------------------------------------------------ bounds


def test_a_budget_of_a_weight_that_is_zero_is_none(tiny, tmp_path):
    module = editor(tiny, "FT", max_change=0.5)
    module.configure_model()
    for layer in module.layers:
        module.original(layer).zero_()
        module.master(layer).data.zero_()
        module.anatomy.weight(layer).zero_()
    bench = module.workbench()
    bench.write(0, Delta.from_dense(torch.ones(32, 48)))
    with pytest.raises(Exception, match=r"^the change of layer 0 is inf times its original norm, over the budget of 0\.5$"):
        bench.finish()


@pytest.mark.parametrize("method", METHODS)
def test_norm_cap_scales_down_and_stays_within_its_bounds(tiny, tmp_path, method):
    module = editor(tiny, method, (NormCap(of_original=1e-3),))
    fit(module, tmp_path, facts(4))
    assert all(len(record["cases"]) == 2 and record["rejected"] is None for record in module.journal.records())
    for layer in module.layers:
        change = (module.master(layer) - module.original(layer)).double().norm()
        assert 0 < float(change) <= 1.01e-3 * float(module.original(layer).double().norm())


def test_a_cap_of_what_is_not_finite_rejects_it(tiny, tmp_path):
    class Huge(MEMIT):
        def solve(self, *args, **kwargs):
            left, right = super().solve(*args, **kwargs).factors
            return Delta.low_rank(left * 1e200, right * 1e200)  # finite factors of an infinite product

    module = editor(tiny, Huge(lam=10.0), (NormCap(per_batch=1.0), REVIVE()))
    fit(module, tmp_path, facts(2))
    (record,) = module.journal.records()
    assert record["rejected"] == "the change solved for layer 0 is not finite"
    assert isinstance(module.guards[0], Guard)
