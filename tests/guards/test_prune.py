"""PRUNE: restrained singular values, shown alone or written, on thin and on dense changes."""

import pytest
import torch
from guarding import WEIGHT, D, M, close, dense, ready, thin

from lit_edit.delta import Delta
from lit_edit.guards import PRUNE
from lit_edit.guards.prune import leading, restrain, restraining
from lit_edit.spectrum import decompose
from tests.tiny import normal

SIGMA_MAX = float(torch.linalg.svdvals(WEIGHT)[0])
RESTRAINTS = ["log", "log2", "log1_5", "log1_2", "linear"]


@pytest.mark.parametrize("restraint", RESTRAINTS)
def test_restraint_is_the_identity_below_continuous_at_and_increasing_above_sigma_max(restraint):
    below = torch.linspace(0, 2.999, 50, dtype=torch.float64)
    assert torch.equal(restrain(below, 3.0, restraint), below)
    at = torch.tensor([3.0, 3.0 + 1e-9], dtype=torch.float64)
    close(restrain(at, 3.0, restraint), torch.full((2,), 3.0, dtype=torch.float64), 1e-8)
    above = torch.linspace(3, 300, 200, dtype=torch.float64)
    mapped = restrain(above, 3.0, restraint)
    assert bool((mapped.diff() > 0).all())
    slope = {"log": 1 / 3, "log2": 1 / (3 * 0.6931471805599453), "linear": 0.5}.get(restraint)
    if slope is not None:
        assert float((mapped[1] - 3.0) / (above[1] - 3.0)) == pytest.approx(slope, rel=0.5)


def test_restraint_has_the_published_values():
    sigma = torch.tensor([8.0], dtype=torch.float64)
    assert float(restrain(sigma, 2.0, "log2")) == pytest.approx(4.0)  # log2(8) - log2(2) + 2
    assert float(restrain(sigma, 2.0, "linear")) == pytest.approx(5.0)
    assert float(restrain(sigma, 2.0, "log")) == pytest.approx(3.3862943611198906)
    assert float(restrain(sigma, 2.0, "log1_2")) == pytest.approx(2 + 1.3862943611198906 / 0.1823215567939546)


@pytest.mark.parametrize("rank", [1, 4, 13])
def test_factored_and_dense_triples_agree(rank):
    change = thin(1, rank=rank)
    for turned in (change, Delta.low_rank(change.right.T, change.left.T)):
        u, s, v = leading(turned, lambda sigma: min(rank, 3))
        du, ds, dv = leading(Delta.from_dense(turned.dense()), lambda sigma: min(rank, 3))
        exact = torch.linalg.svdvals(turned.dense())[: len(s)]
        close(s, exact)
        close(ds, exact)
        close((u * s) @ v.T, (du * ds) @ dv.T)
        close(dv.T @ dv, torch.eye(len(s), dtype=torch.float64))


def test_dense_triples_reach_down_to_their_noise():
    basis = torch.linalg.qr(normal(M, 3)).Q, torch.linalg.qr(normal(D, 3)).Q
    sizes = torch.tensor([1.0, 1e-5, 1e-9], dtype=torch.float64)
    u, s, v = leading(Delta.from_dense((basis[0] * sizes) @ basis[1].T), len)
    torch.testing.assert_close(s, sizes[:2], rtol=1e-4, atol=0)
    close((u.T @ basis[0][:, :2]).abs(), torch.eye(2, dtype=torch.float64), 1e-4)
    close(v.T @ v, torch.eye(2, dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("restraint", RESTRAINTS)
def test_factored_and_dense_restraints_agree_with_the_formula(restraint):
    change = thin(2, scale=0.8)
    u, s, vt = torch.linalg.svd(change.dense(), full_matrices=False)
    wanted = (u * restrain(s, SIGMA_MAX, restraint)) @ vt - change.dense()
    above = int((s >= SIGMA_MAX).sum())
    assert 0 < above < int((s > 1e-9).sum())
    for form in (change, Delta.from_dense(change.dense())):
        correction = restraining(form, SIGMA_MAX, restraint)
        close(correction.dense(), wanted)
        assert correction.factors[0].shape[1] == above


def test_prune_view_edits_freely_and_shows_the_restrained_weight():
    guard, delta = ready(PRUNE("log", "view")), thin(3, scale=0.8)
    assert guard(0, delta, WEIGHT) is delta
    edited = WEIGHT + delta.dense()
    u, s, vt = torch.linalg.svd(edited - WEIGHT, full_matrices=False)
    close(guard.view(0, edited), WEIGHT + (u * restrain(s, SIGMA_MAX, "log")) @ vt, 1e-10)
    assert guard.view(0, edited.float()).dtype == torch.float32
    small = WEIGHT + 0.01 * thin(4).dense()
    assert torch.equal(guard.view(0, small), small)


@pytest.mark.parametrize("form", [thin, dense])
def test_prune_persistent_writes_what_view_shows(form):
    view, persistent = ready(PRUNE("log2", "view")), ready(PRUNE("log2", "persistent"))
    delta = form(5, scale=0.8)
    written = persistent(0, delta, WEIGHT)
    assert written.is_low_rank == delta.is_low_rank
    close(WEIGHT + written.dense(), view.view(0, WEIGHT + delta.dense()), 1e-10)
    edited = WEIGHT + written.dense()
    assert torch.equal(persistent.view(0, edited), edited)
    # The second change is restrained together with the first one.
    more = persistent(0, form(6, scale=2.0), edited)
    close(edited + more.dense(), view.view(0, edited + form(6, scale=2.0).dense()), 1e-10)


def test_prune_persistent_bounds_what_grows_without_it():
    free, held, guard = WEIGHT, WEIGHT, ready(PRUNE("log", "persistent"))
    for step in range(100):
        free = free + thin(step).dense()
        held = held + guard(0, thin(step), held).dense()
    largest = [float(torch.linalg.matrix_norm(weight - WEIGHT, 2)) for weight in (free, held)]
    assert largest[0] > 10 * SIGMA_MAX
    assert largest[1] < 2 * SIGMA_MAX


def test_prune_leaves_small_and_broken_changes_alone():
    guard = ready(PRUNE("log", "persistent"))
    for delta in (thin(7, scale=0.01), Delta.from_dense(torch.full((M, D), float("nan"), dtype=torch.float64))):
        assert guard(0, delta, WEIGHT) is delta


def test_prune_takes_a_spectrum_that_is_there():
    spectrum = decompose(2 * WEIGHT)  # not this weight's, to see that it is used
    guard, delta = ready(PRUNE("log", "persistent"), spectrum=spectrum), thin(8, scale=2.0)
    close(guard(0, delta, WEIGHT).dense() - delta.dense(), restraining(delta, 2 * SIGMA_MAX, "log").dense())
