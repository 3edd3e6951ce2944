"""Earlier keys in the metric: thin, folded or resumed, it is always the same sum."""

import pytest
import torch

from lit_edit.algebra.history import KeyHistory
from lit_edit.algebra.inverses import DenseInverse, Ridge, SpectralInverse
from lit_edit.batch.state import restore, snapshot
from tests.tiny import normal

D = 12


def start(seed=0):
    c = torch.linalg.qr(normal(D, D, seed=seed)).Q
    return SpectralInverse(torch.logspace(-1, 1, D, dtype=torch.float64), c, 2.0)


def batches(count, size=3, seed=1):
    return list(normal(count, size, D, seed=seed).float())


def dense(base, keys):
    every = torch.cat(keys).double()
    return torch.linalg.inv(base.matrix(D).double() + every.T @ every)


@pytest.mark.parametrize("base", [start(), Ridge(0.5)])
@pytest.mark.parametrize("limit", [None, 1, 4, 7, 100])
def test_the_inverse_is_that_of_the_dense_sum_however_often_it_was_folded(base, limit):
    history, seen = KeyHistory(D, limit), []
    x = normal(D, 2, seed=5)
    for keys in batches(9):
        history.append(keys)
        seen.append(keys)
        torch.testing.assert_close(history.inverse(base)(x), dense(base, seen) @ x, rtol=1e-9, atol=1e-11)
        assert len(history) < history.limit, "state must not grow beyond the limit"


def test_nothing_is_solved_twice():
    class Counting(Ridge):
        columns = 0

        def __call__(self, columns_IN):
            self.columns += columns_IN.shape[1]
            return super().__call__(columns_IN)

    base, history = Counting(1.0), KeyHistory(D, 1000)
    for keys in batches(6):
        history.append(keys)
        history.inverse(base)
    assert base.columns == 18, "each key goes through the base once"


@pytest.mark.parametrize("limit", [100, 7])
def test_a_resumed_history_has_the_same_bits(limit):
    base, one, x = start(), KeyHistory(D, limit), normal(D, 3, seed=6)
    for keys in batches(5):
        one.append(keys)
        one.inverse(base)
    other = KeyHistory(D, limit)
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert torch.equal(other.inverse(start())(x), one.inverse(base)(x))
    for history in (one, other):
        history.append(batches(1, seed=9)[0])
    assert torch.equal(other.inverse(start())(x), one.inverse(base)(x))


@pytest.mark.parametrize("limit", [100, 7])
def test_what_is_taken_back_was_never_there(limit):
    base, history, plain, x = start(), KeyHistory(D, limit), KeyHistory(D, limit), normal(D, 3, seed=6)
    for keys, wrong in zip(batches(5), batches(5, seed=77), strict=True):
        before = snapshot([history])
        history.append(wrong)
        history.inverse(base)
        restore(before)
        for one in (history, plain):
            one.append(keys)
        assert torch.equal(history.inverse(base)(x), plain.inverse(base)(x))


def test_a_singular_dense_metric_is_refused():
    with pytest.raises(Exception, match="singular"):
        DenseInverse(torch.zeros(3, 3))
