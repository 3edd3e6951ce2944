"""Second moments: streamed equals in one piece, padding never counts, the budget is kept to the token."""

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.forward import reading
from lit_edit.moments import MomentSum, SecondMoment, collect
from tests.tiny import normal, seeded, tiny_model

LENGTHS = (3, 17, 9, 1, 30, 12, 5)
ROWS = [torch.randint(320, (n,), generator=seeded(n)).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


@torch.no_grad()
def plainly(anatomy, layer, tokens):
    """One row at a time, no padding, cut at the budget."""
    kept, left = [], tokens
    with reading(anatomy.down(layer), lambda x: kept.append(x[0].double()), None):
        for row in ROWS:
            if left > 0:
                anatomy.model(torch.tensor([row[:left]]), use_cache=False)
                left -= len(row[:left])
    keys = torch.cat(kept)
    return keys.T @ keys / len(keys), len(keys)


@pytest.mark.parametrize("tokens", [1, 20, 40, 77, 10**6])
@pytest.mark.parametrize("at_once", [1, 32, 8192])
def test_streamed_is_the_plain_mean_over_exactly_so_many_tokens(anatomy, tokens, at_once):
    found = collect(anatomy, iter(ROWS), (0, 2), tokens, tokens_at_once=at_once)
    for layer, moment in found.items():
        mean, count = plainly(anatomy, layer, tokens)
        assert moment.count == count == min(tokens, sum(LENGTHS))
        torch.testing.assert_close(moment.mean.double(), mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))
    assert set(found) == {0, 2}


def test_progress_is_told(anatomy):
    told = []
    collect(anatomy, ROWS, (1,), 50, tokens_at_once=32, on_tokens=lambda *pair: told.append(pair))
    assert told[-1] == (50, 50) and len(told) > 1 and [t for t, _ in told] == sorted(t for t, _ in told)


def test_layers_above_the_last_do_not_run(anatomy):
    ran = []
    with reading(anatomy.down(2), ran.append, None):
        collect(anatomy, ROWS, (0, 1), 10)
    assert not ran


def test_an_empty_corpus_and_an_overflowing_model_are_refused(anatomy):
    with pytest.raises(EditError, match="no text"):
        collect(anatomy, [[]], (0,), 10)
    weight = anatomy.weight(0)
    before = weight.clone()
    weight.fill_(float("inf"))
    with pytest.raises(EditError, match="layer 1 is not finite"):
        collect(anatomy, ROWS, (1,), 10)
    weight.copy_(before)


def test_sum_and_eigenvalues():
    keys = normal(40, 6, dtype=torch.float32)
    total = MomentSum(6, torch.device("cpu"))
    for chunk in keys.split(7):
        total.add(chunk)
    moment = total.result()
    torch.testing.assert_close(moment.mean.double(), keys.double().T @ keys.double() / 40, rtol=1e-5, atol=1e-6)
    values, vectors = moment.eigen()
    assert moment.count == 40 and values.dtype == torch.float64 and bool((values.diff() >= 0).all())
    torch.testing.assert_close((vectors * values) @ vectors.T, moment.mean.double(), rtol=1e-9, atol=1e-9)
    lopsided = SecondMoment(moment.mean + torch.triu(torch.full((6, 6), 1e-7), 1), 40)
    torch.testing.assert_close(lopsided.eigen()[0], values, rtol=1e-4, atol=1e-6)
