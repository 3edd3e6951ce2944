"""REVIVE: the projector is the double sum, what is protected never moves, every option does what it says."""

import pytest
import torch

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE
from lit_edit.spectrum import Spectrum, decompose, energy_rank
from tests.tiny import normal

M, D = 10, 24
WEIGHT = normal(M, D)


def exact(weight):
    """A spectrum whose vectors are not rounded to float32, for identities in float64."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return Spectrum(u, s, vt.T)


def guard_of(weight=WEIGHT, **options):
    guard = REVIVE(**options)
    guard.prepare(0, weight, exact(weight))
    return guard


def thin(seed):
    return Delta.low_rank(normal(M, 4, seed=seed), normal(4, D, seed=seed + 1000))


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("dense", [False, True])
def test_projector_is_the_double_sum_over_the_full_basis(tau, dense):
    delta = Delta.from_dense(thin(1).dense()) if dense else thin(1)
    safe = guard_of(tau=tau)(0, delta, WEIGHT)
    u, s, vt = torch.linalg.svd(WEIGHT, full_matrices=True)
    k = energy_rank(s, tau)
    alpha = u.T @ delta.dense() @ vt.T
    alpha[:k] = 0
    alpha[:, :k] = 0
    torch.testing.assert_close(safe.dense(), u @ alpha @ vt, rtol=0, atol=1e-12)
    assert safe.is_low_rank != dense


def test_compact_basis_also_drops_what_lies_outside_the_row_space():
    u, s, vt = torch.linalg.svd(WEIGHT, full_matrices=False)
    for delta in (thin(2), Delta.from_dense(thin(2).dense())):
        alpha = u.T @ delta.dense() @ vt.T
        k = energy_rank(s, 0.3)
        alpha[:k] = 0
        alpha[:, :k] = 0
        safe = guard_of(tau=0.3, basis="compact")(0, delta, WEIGHT).dense()
        torch.testing.assert_close(safe, u @ alpha @ vt, rtol=0, atol=1e-12)
    assert float(safe.norm()) < 0.9 * float(guard_of(tau=0.3)(0, thin(2), WEIGHT).norm())


def test_protected_triples_never_move():
    guard, weight = guard_of(tau=0.3), WEIGHT.clone()
    spectrum = exact(WEIGHT)
    k = guard.protected(0).rank
    assert 1 <= k < M
    u, s, v = spectrum.left[:, :k], spectrum.sigma[:k], spectrum.right[:, :k]
    for step in range(200):
        weight = weight + guard(0, thin(step), weight).dense()
    assert float((weight - WEIGHT).norm()) > 10 * float(WEIGHT.norm())  # there was something to withstand
    torch.testing.assert_close(weight @ v, u * s, rtol=0, atol=1e-10)
    torch.testing.assert_close(weight.T @ u, v * s, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"side": "left"}, {"side": "right"}, {"basis": "compact"}])
def test_idempotent(options):
    guard = guard_of(tau=0.4, **options)
    once = guard(0, thin(3), WEIGHT)
    torch.testing.assert_close(guard(0, once, WEIGHT).dense(), once.dense(), rtol=0, atol=1e-12)


def test_sides():
    u, v = exact(WEIGHT).left, exact(WEIGHT).right
    k = guard_of(tau=0.3).protected(0).rank
    for side, left, right in (("both", True, True), ("left", True, False), ("right", False, True)):
        guard = guard_of(tau=0.3, side=side)
        safe = guard(0, thin(4), WEIGHT).dense()
        assert (float((u[:, :k].T @ safe).norm()) < 1e-12) == left
        assert (float((safe @ v[:, :k]).norm()) < 1e-12) == right
        assert guard.protected(0).left.shape[1] == (k if left else 0)
        assert guard.protected(0).right.shape[1] == (k if right else 0)


def test_energy_and_rule_choose_the_rank():
    sigma = exact(WEIGHT).sigma
    for energy in ("sigma", "sigma2"):
        for rule in ("at_least", "released"):
            guard = guard_of(tau=0.4, energy=energy, rule=rule)
            assert guard.protected(0).rank == energy_rank(sigma, 0.4, energy, rule)
    ranks = {
        guard_of(tau=0.4, energy=e, rule=r).protected(0).rank for e in ("sigma", "sigma2") for r in ("at_least", "released")
    }
    assert len(ranks) > 1


def test_original_or_current_weight():
    moved = WEIGHT + 5 * normal(M, D, seed=5)
    fixed, following = guard_of(tau=0.2), guard_of(tau=0.2, of="current")
    for guard in (fixed, following):
        guard.avoid(0, moved)  # what the trainer calls before every solve
    delta = thin(6)
    torch.testing.assert_close(fixed(0, delta, moved).dense(), guard_of(tau=0.2)(0, delta, WEIGHT).dense())
    now = decompose(moved)
    k = energy_rank(now.sigma, 0.2)
    assert float((now.left[:, :k].double().T @ following(0, delta, moved).dense()).norm()) < 1e-5
    assert float((now.left[:, :k].double().T @ fixed(0, delta, moved).dense()).norm()) > 1e-2


def test_constrain_hands_the_subspace_to_the_editor():
    assert guard_of(tau=0.2).avoid(0, WEIGHT) is None
    guard = guard_of(tau=0.2, mode="constrain")
    avoid = guard.avoid(0, WEIGHT)
    assert avoid is not None and torch.equal(avoid.left, guard.protected(0).left)


def test_spectrum_is_computed_where_none_is_given():
    guard = REVIVE(tau=0.3)
    guard.prepare(0, WEIGHT.float(), None)
    torch.testing.assert_close(
        guard(0, thin(7), WEIGHT).dense(), guard_of(tau=0.3)(0, thin(7), WEIGHT).dense(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_tau_outside_its_range(tau):
    with pytest.raises(EditError, match="tau"):
        REVIVE(tau=tau)


def test_tau_that_protects_everything():
    with pytest.raises(EditError, match="protects all"):
        guard_of(tau=0.9999)
