"""RECT: the entries that change most, relative to the weight, and nothing else."""

import pytest
import torch
from guarding import WEIGHT, D, M, dense, thin

from lit_edit.delta import Delta
from lit_edit.guards import RECT
from tests.tiny import normal


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.4, 0.9])
@pytest.mark.parametrize("form", [thin, dense])
def test_rect_keeps_the_relatively_largest_entries_and_how_many(keep, form):
    delta = form(10)
    cut = RECT(keep)(0, delta, WEIGHT)
    assert not cut.is_low_rank
    size = (delta.dense() / WEIGHT).abs().flatten()
    kept = M * D - int(round((1 - keep) * M * D, 6) // 1)
    wanted = torch.zeros(M * D, dtype=torch.bool)
    wanted[size.argsort(descending=True)[:kept]] = True
    assert torch.equal(cut.dense(), delta.dense() * wanted.view(M, D))


def test_rect_threshold_keeps_one_entry_more():
    size = (dense(11).dense() / (WEIGHT + 1e-8)).abs()
    guard = RECT(0.4, defer=True, epsilon=1e-8, rule="threshold")
    assert guard.deferred and not RECT().deferred
    limit = size.flatten().kthvalue(int(0.6 * M * D)).values
    assert torch.equal(guard.kept(dense(11).dense(), WEIGHT), size >= limit)
    assert (
        int(guard.kept(dense(11).dense(), WEIGHT).sum())
        == int(RECT(0.4, epsilon=1e-8).kept(dense(11).dense(), WEIGHT).sum()) + 1
    )


def test_rect_again_keeps_what_it_has_kept():
    once = RECT(0.2)(0, thin(12), WEIGHT)
    again = RECT(0.2)(0, once, WEIGHT)
    assert torch.equal(again.dense(), once.dense())  # the zeroed entries are the smallest now
    assert float(RECT(0.1)(0, once, WEIGHT).norm()) < float(once.norm())


def test_rect_zero_weights_are_kept_and_nothing_becomes_nan():
    weight = WEIGHT.clone()
    weight[0, :5] = 0
    delta = dense(13).dense()
    delta[0, 0] = 0  # nothing over nothing
    delta[0, 1] = 1e-200
    for epsilon in (0.0, 1e-8):
        cut = RECT(0.2, epsilon=epsilon)(0, Delta.from_dense(delta), weight).dense()
        assert bool(torch.isfinite(cut).all())
        assert torch.equal(cut[0, 2:5], delta[0, 2:5])
    assert RECT(0.2)(0, Delta.from_dense(delta), weight).dense()[0, 1] == 1e-200
    assert bool(RECT(0.2).kept(delta, weight)[0, :5].all())  # nothing over nothing takes one of the places, as when sorted


def test_rect_ties_go_by_index_or_stay_together():
    delta, weight = torch.ones(2, 5, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
    delta[0, 0] = 9
    mask = RECT(0.3).kept(delta, weight).flatten().tolist()
    assert mask == [True] + 7 * [False] + 2 * [True]
    assert bool(RECT(0.3, rule="threshold").kept(delta, weight).all())


def test_rect_keep_is_a_decimal():
    assert int(RECT(0.9).kept(normal(1, 10), normal(1, 10, seed=1)).sum()) == 9  # 1 - 0.9 is below 0.1 in binary
    assert bool(RECT(0.99).kept(normal(1, 10), normal(1, 10, seed=1)).all())


def test_rect_epsilon_is_added_to_the_signed_weight():
    weight, delta = torch.full((1, 4), -1e-8, dtype=torch.float64), torch.full((1, 4), 1e-12, dtype=torch.float64)
    weight[0, 0], delta[0, 0] = 1.0, 10.0
    assert RECT(0.25).kept(delta, weight)[0, 0]
    assert not RECT(0.25, epsilon=1e-8).kept(delta, weight)[0, 0]  # the others divide by zero now
