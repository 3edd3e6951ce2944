"""L2SP: a sum over all changes in which each counts less with every later one."""

import math

import pytest
import torch
from guarding import WEIGHT, close, dense, ready, thin

from lit_edit.guards import L2SP, REVIVE
from lit_edit.spectrum import decompose


@pytest.mark.parametrize("form", [thin, dense])
def test_a_change_counts_less_with_every_later_one(form):
    guard, weight = ready(L2SP(0.8)), WEIGHT.double()
    for seed in range(5):
        weight = weight + guard(0, form(seed), weight).dense().double()
    close(weight - WEIGHT, sum(0.8 ** (4 - seed) * form(seed).dense() for seed in range(5)), atol=1e-9)


def test_the_first_change_is_written_as_it_is_and_thin():
    guard, delta = ready(L2SP()), thin(3)
    assert guard(0, delta, WEIGHT) is delta
    assert guard.report(0, delta, delta) == {"faded": 0.0}


def test_the_weights_stay_bounded_however_long_the_stream_is():
    guard, weight = ready(L2SP(0.9)), WEIGHT.double()
    for _ in range(200):
        weight = weight + guard(0, thin(7), weight).dense().double()
    close(weight - WEIGHT, thin(7).dense() / (1 - 0.9), atol=1e-6)


def test_half_life():
    guard = L2SP(0.95)
    assert 0.95**guard.half_life == pytest.approx(0.5) and guard.half_life == pytest.approx(13.51, abs=0.01)
    assert L2SP(0.5).half_life == 1


def test_nothing_to_write_fades_all_the_same_and_is_told():
    guard, before = ready(L2SP(0.75)), thin(4, scale=2.0)
    nothing = thin(5, scale=0.0)
    after = guard(0, nothing, WEIGHT + before.dense())
    close(after.dense(), -0.25 * before.dense())
    assert guard.report(0, nothing, after) == {"faded": 0.0}, "a share of nothing"
    told = guard.report(0, before, guard(0, before, WEIGHT + before.dense()))
    assert told == {"faded": pytest.approx(0.25)} and math.isfinite(told["faded"])


def test_behind_it_revive_protects_what_it_protects():
    fading, revive = ready(L2SP(0.8)), ready(REVIVE(0.3))
    protected, weight = revive.protected(0), WEIGHT.double()
    for seed in range(3):
        weight = weight + revive(0, fading(0, thin(seed), weight), weight).dense().double()
    close(protected.left.double().T @ (weight - WEIGHT), torch.zeros(protected.rank, WEIGHT.shape[1]).double(), atol=1e-5)
    assert decompose(weight).sigma[0] > 0
