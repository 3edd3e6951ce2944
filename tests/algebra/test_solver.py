"""The one solver against the closed forms it stands for, in float64 on random problems."""

import pytest
import torch

from lit_edit.algebra.inverses import SpectralInverse
from lit_edit.delta import remove_columns
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.moments import SecondMoment
from lit_edit.solver import WithHistory, Within, solve
from lit_edit.spectrum import Subspace
from tests.tiny import normal

D, M, N = 24, 10, 6


def spd(seed, d=D):
    """A symmetric positive definite matrix with eigenvalues over three decades."""
    basis = torch.linalg.qr(normal(d, d, seed=seed)).Q
    return (basis * torch.logspace(-2, 1, d, dtype=torch.float64)) @ basis.T


def inverse_of(c, scale=1.0, ridge=0.0):
    return SpectralInverse(*torch.linalg.eigh(c), scale=scale, ridge=ridge)


def problem(seed, n=N):
    return normal(n, D, seed=seed + 100), normal(n, M, seed=seed + 200)


def basis(d, k, seed):
    return torch.linalg.qr(normal(d, k, seed=seed)).Q


def memit(c, lam, keys, residuals):
    """The formula of the paper, densely."""
    k, r = keys.T, residuals.T
    return torch.linalg.solve(lam * c + k @ k.T, k @ r.T).T


@pytest.mark.parametrize("seed", range(5))
def test_memit_is_the_paper_formula(seed):
    c, (keys, residuals) = spd(seed), problem(seed)
    ours = solve(inverse_of(c, 3.0), keys, residuals).dense()
    torch.testing.assert_close(ours, memit(c, 3.0, keys, residuals), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_any_number_of_edits(n):
    keys, residuals = problem(1, n)
    c = spd(1)
    torch.testing.assert_close(
        solve(inverse_of(c), keys, residuals).dense(), memit(c, 1.0, keys, residuals), rtol=1e-9, atol=1e-11
    )


def test_the_ridge_adds_to_the_metric():
    c, (keys, residuals) = spd(2), problem(2)
    dense = memit(2.0 * c + 0.5 * torch.eye(D, dtype=torch.float64), 1.0, keys, residuals)
    torch.testing.assert_close(solve(inverse_of(c, 2.0, 0.5), keys, residuals).dense(), dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("earlier", [1, 7, 60])
def test_history_by_woodbury_is_the_dense_sum(earlier):
    c, (keys, residuals) = spd(3), problem(3)
    history = normal(earlier, D, seed=9)
    dense = memit(2.0 * c + history.T @ history, 1.0, keys, residuals)
    ours = solve(WithHistory(inverse_of(c, 2.0), history.T), keys, residuals).dense()
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)


def test_without_slack_the_keys_write_exactly_the_residuals():
    c, (keys, residuals) = spd(4), problem(4)
    delta = solve(inverse_of(c), keys, residuals, mu=0.0).dense()
    torch.testing.assert_close(delta @ keys.T, residuals.T, rtol=1e-9, atol=1e-10)
    # ... at least cost: adding anything that writes nothing at these keys costs more.
    other = remove_columns(normal(M, D, seed=5).T, torch.linalg.qr(keys.T).Q).T
    cost = [float(torch.trace(x @ c @ x.T)) for x in (delta, delta + 1e-2 * other, delta - 1e-2 * other)]
    assert cost[0] < min(cost[1:])


def test_small_slack_tends_to_the_equality():
    c, (keys, residuals) = spd(6), problem(6)
    exact = solve(inverse_of(c), keys, residuals, mu=0.0).dense()
    gaps = [float((solve(inverse_of(c), keys, residuals, mu=mu).dense() - exact).norm()) for mu in (1e-2, 1e-4, 1e-6)]
    assert gaps[0] > 50 * gaps[1] > 50 * 50 * gaps[2]


def test_equal_keys_without_slack_are_refused_in_one_sentence():
    keys, residuals = problem(7)
    keys[1] = keys[0]
    with pytest.raises(EditError, match="linearly dependent"):
        solve(inverse_of(spd(7)), keys, residuals, mu=0.0)
    assert solve(inverse_of(spd(7)), keys, residuals, mu=1.0).is_finite()


def test_dead_directions_do_not_divide_by_zero_and_a_metric_of_zeros_is_refused():
    c = torch.diag(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    assert solve(inverse_of(c), normal(2, 3), normal(2, 4)).is_finite()
    with pytest.raises(EditError, match="singular"):
        inverse_of(torch.zeros(3, 3, dtype=torch.float64))


def objective(delta, c, keys, residuals):
    return float((residuals.T - delta @ keys.T).square().sum() + torch.trace(delta @ c @ delta.T))


@pytest.mark.parametrize("seed", range(20))
def test_solving_inside_is_the_dense_pseudo_inverse_stationary_and_never_worse_than_cutting(seed):
    c, (keys, residuals) = spd(seed), problem(seed)
    u, v = basis(M, 3, seed + 1), basis(D, 5, seed + 2)
    editor = MEMIT(lam=1.0)
    editor._start[0] = inverse_of(c)
    ours = editor.solve(0, keys, residuals, None, Subspace(u, v)).dense()
    pm, pd = torch.eye(M, dtype=torch.float64) - u @ u.T, torch.eye(D, dtype=torch.float64) - v @ v.T
    inside, wanted = pd @ keys.T, pm @ residuals.T
    dense = wanted @ inside.T @ torch.linalg.pinv(pd @ (c + keys.T @ keys) @ pd, hermitian=True, rtol=1e-10)
    torch.testing.assert_close(ours, dense, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(pm @ ours @ pd, ours, rtol=1e-9, atol=1e-11)
    gradient = pm @ (ours @ c - (residuals.T - ours @ keys.T) @ keys) @ pd
    assert float(gradient.norm()) < 1e-8 * float(residuals.norm() * keys.norm())
    cut = pm @ solve(inverse_of(c), keys, residuals).dense() @ pd
    assert objective(ours, c, keys, residuals) <= objective(cut, c, keys, residuals) + 1e-9


def test_within_is_the_pseudo_inverse_of_the_cut_metric():
    c, v = spd(11), basis(D, 4, 12)
    pd = torch.eye(D, dtype=torch.float64) - v @ v.T
    columns = pd @ normal(D, 3, seed=13)
    dense = torch.linalg.pinv(pd @ c @ pd, hermitian=True, rtol=1e-10) @ columns
    torch.testing.assert_close(Within(inverse_of(c), v)(columns), dense, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("history", [True, False])
def test_batches_with_history_add_up_to_one_shot(history):
    """Keys and target outputs fixed, R_t = V_t - W_{t-1} K_t: with history sequential equals one-shot, without it does not."""
    c = spd(14).float().double()  # the moment is kept in float32
    keys, values = normal(4, 5, D, seed=15).float().double(), normal(4, 5, M, seed=16)
    editor = MEMIT(lam=2.0, history=history)
    editor.allocate(0, M, D)
    editor.prepare(0, torch.zeros(M, D), SecondMoment(c.float(), 1))
    weight = start = normal(M, D, seed=17)
    for k, v in zip(keys, values, strict=True):
        weight = weight + editor.solve(0, k, v - k @ weight.T, weight).dense()
        editor.remember(0, k, weight)
    every_k, every_v = keys.flatten(0, 1), values.flatten(0, 1)
    one_shot = start + memit(c, 2.0, every_k, every_v - every_k @ start.T)
    error = float((weight - one_shot).norm() / one_shot.norm())
    assert error < 1e-9 if history else error > 1e-3


def test_memit_refuses_what_it_cannot_work_with():
    with pytest.raises(EditError, match="lam"):
        MEMIT(lam=0.0)
    with pytest.raises(EditError, match="second moment"):
        MEMIT().prepare(3, torch.zeros(M, D), None)
