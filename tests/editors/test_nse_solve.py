"""NSE's solve on the block of the selected neurons, against its dense formula."""

import pytest
import torch

from lit_edit.delta import remove_columns
from lit_edit.editors.nse import NSE, Block
from lit_edit.moments import SecondMoment
from lit_edit.solver import Within
from lit_edit.spectrum import Subspace
from tests.tiny import normal

D, M, N, LAM = 24, 10, 6, 2.0


def second_moment(seed):
    basis = torch.linalg.qr(normal(D, D, seed=seed)).Q
    return ((basis * torch.logspace(-2, 1, D, dtype=torch.float64)) @ basis.T).float()


def ready(seed=0, threshold=0.7, earlier=(), limit=None):
    """An editor that has seen some keys, and its metric as a dense matrix."""
    editor, c = NSE(lam=LAM, neuron_threshold=threshold), second_moment(seed)
    editor.allocate(0, M, D)
    if limit is not None:
        editor.remembered(0).limit = limit
    editor.prepare(0, torch.zeros(M, D), SecondMoment(c, 1))
    metric = LAM * ((c + c.T) / 2).double()
    for keys in earlier:
        editor.remember(0, keys, None)
        metric = metric + keys.double().T @ keys.double()
    return editor, metric


def batches(count, seed=0):
    return list(normal(count, 5, D, seed=seed + 30).float())


def problem(seed):
    # Neurons of different sizes: otherwise a share of the scores is a share of the neurons.
    return normal(N, D, seed=seed + 100) * torch.logspace(-1, 1, D, dtype=torch.float64), normal(N, M, seed=seed + 200)


def chosen(keys, threshold):
    """The rule in words: largest first, while their sum is at most a share of the whole."""
    score = keys.abs().sum(0)
    kept, total = [], 0.0
    for neuron in sorted(range(D), key=lambda i: -float(score[i])):
        total += float(score[neuron])
        if kept and total > threshold * float(score.sum()):
            break
        kept.append(neuron)
    return sorted(kept)


def dense(metric, keys, residuals, s):
    """The formula on the block of the selected neurons."""
    k = keys.T[s]
    block = metric[s][:, s] + k @ k.T
    delta = torch.zeros(M, D, dtype=torch.float64)
    delta[:, s] = torch.linalg.solve(block, k @ residuals).T
    return delta


ROUTES = ("outside_closed", "inside_block")
HISTORIES = {"none": ((), None), "thin": (batches(2), None), "folded": (batches(3), 8)}


@pytest.mark.parametrize("threshold", [1e-6, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_are_the_dense_formula_on_the_block(seed, route, history, threshold, monkeypatch):
    earlier, limit = HISTORIES[history]
    editor, metric = ready(seed, threshold, earlier, limit)
    assert (editor.remembered(0).folded.numel() > 0) == (history == "folded")
    monkeypatch.setattr(editor, "within", getattr(editor, route))
    keys, residuals = problem(seed)
    delta, s = editor.solve(0, keys, residuals, None), chosen(keys, threshold)
    assert 0 < len(s) < D and sorted(torch.nonzero(editor.selected(keys))[:, 0].tolist()) == s
    torch.testing.assert_close(delta.dense(), dense(metric, keys, residuals, s), rtol=1e-9, atol=1e-11)
    others = [i for i in range(D) if i not in s]
    assert delta.is_low_rank and delta.factors[1].shape[0] == N
    assert float(delta.dense()[:, others].abs().max()) == 0.0 and float(delta.dense()[:, s].abs().min()) > 0


@pytest.mark.parametrize("threshold", [1.0, 3.0])
def test_a_threshold_of_one_keeps_every_neuron(threshold):
    editor, metric = ready(1, threshold, batches(2))
    keys, residuals = problem(1)
    assert bool(editor.selected(keys).all())
    ours = editor.solve(0, keys, residuals, None).dense()
    torch.testing.assert_close(ours, dense(metric, keys, residuals, list(range(D))), rtol=1e-9, atol=1e-11)


def test_the_cheaper_way_is_taken():
    editor, _ = ready()
    mask = torch.ones(D, dtype=torch.bool)
    mask[3] = False
    assert isinstance(editor.within(0, mask), Within)  # 12 * 24^2 < 23^3
    mask[:8] = False
    assert isinstance(editor.within(0, mask), Block)
    assert editor.within(0, torch.ones(D, dtype=torch.bool)) is editor.metric(0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seed", range(5))
def test_a_guard_that_constrains_leaves_the_best_that_is_allowed(seed, route, monkeypatch):
    """Among all changes of the selected neurons that stay out of the directions: stationary, and inside."""
    editor, metric = ready(seed, 0.8, batches(2))
    monkeypatch.setattr(editor, "within", getattr(editor, route))
    keys, residuals = problem(seed)
    u, v = (torch.linalg.qr(normal(d, k, seed=seed + 9)).Q for d, k in ((M, 3), (D, 4)))
    ours = editor.solve(0, keys, residuals, None, Subspace(u, v)).dense()
    mask = editor.selected(keys)
    assert float(ours[:, ~mask].abs().max()) == 0.0
    torch.testing.assert_close(u.T @ ours, torch.zeros(3, D, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours @ v, torch.zeros(M, 4, dtype=torch.float64), rtol=0, atol=1e-10)
    gradient = ours @ metric - (residuals.T - ours @ keys.T) @ keys
    allowed = torch.linalg.svd(v * mask[:, None], full_matrices=False).U
    free = remove_columns((gradient * mask).T, allowed).T
    free = free - u @ (u.T @ free)
    assert float(free.norm()) < 1e-9 * float(gradient.norm())
