"""BetaEdit in float64: the released system, its refreshes and its limit."""

import pytest
import torch
from one_layer import EYE, D, M, N, batches, mean, ready, run
from tiny import normal

from lit_edit.editors.alphaedit import AlphaEdit
from lit_edit.editors.betaedit import BetaEdit
from lit_edit.errors import EditError
from lit_edit.workbench import Rejected


def published_betaedit(stream, c, lam, ridge, threshold, refresh):
    """The released system with a dense projector, refreshed from the mixed second moment."""
    values, vectors = torch.linalg.eigh(c)
    p = EYE - vectors[:, values >= threshold] @ vectors[:, values >= threshold].T
    weight, cp, count, ranks = torch.zeros(M, D, dtype=torch.float64), torch.zeros(D, D).double(), 0, []
    for keys, residuals in stream:
        k, r = keys.T, residuals.T
        system = p @ (k @ k.T + cp + lam * c) + ridge * EYE
        weight = weight + torch.linalg.solve(system, p @ k @ r.T).T
        cp, before, count = cp + k @ k.T, count, count + len(keys)
        if count // refresh > before // refresh:
            values, vectors = torch.linalg.eigh((cp / count + lam * c) / (1 + lam))
            closed = vectors[:, values >= threshold]
            p = EYE - closed @ closed.T
        ranks.append(round(float(torch.trace(p))))
    return weight, ranks


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("refresh", [4, 100])
def test_betaedit_is_the_published_system(n, refresh):
    stream = batches(16, n=n)
    options = {"threshold": 0.3, "lam": 1.5, "ridge": 0.5, "refresh": refresh}
    editor = ready(BetaEdit(**options, limit=None))
    dense, ranks = published_betaedit(stream, mean(), 1.5, 0.5, 0.3, refresh)
    torch.testing.assert_close(run(editor, stream), dense, rtol=1e-8, atol=1e-9)
    assert D - editor.forbidden(0).shape[1] == ranks[-1]
    if refresh == 4:
        assert len(set(ranks)) > 1, "the projector has to change, or the refresh is not seen"
        assert int(editor._state(0).refreshes) == 16 * n // 4


def test_betaedit_without_the_penalty_is_alphaedit():
    stream = batches(4)
    alpha, beta = ready(AlphaEdit(ridge=0.5)), ready(BetaEdit(lam=1e-12, ridge=0.5, limit=None))
    torch.testing.assert_close(run(beta, stream), run(alpha, stream), rtol=1e-8, atol=1e-9)
    heavy = run(ready(BetaEdit(lam=1e3, ridge=0.5, limit=None)), stream)
    leak = [float(torch.trace(w @ mean() @ w.T) / w.square().sum()) for w in (heavy, run(ready(AlphaEdit(ridge=0.5)), stream))]
    assert leak[0] < 0.7 * leak[1]


def test_betaedit_rejects_a_change_over_its_limit():
    keys, residuals = batches(1)[0]
    free = ready(BetaEdit(limit=None)).solve(0, keys, residuals, None)
    size = float(free.norm()) / N**0.5
    ready(BetaEdit(limit=size * 1.001)).solve(0, keys, residuals, None)
    with pytest.raises(Rejected, match="over BetaEdit's limit"):
        ready(BetaEdit(limit=size * 0.999)).solve(0, keys, residuals, None)


def test_betaedit_refuses_batches_once_a_refresh_has_closed_everything():
    editor = ready(BetaEdit(lam=1e-3, refresh=40))
    editor.remember(0, normal(40, D, seed=3), torch.zeros(M, D))
    with pytest.raises(EditError, match="so BetaEdit has no room left"):
        editor.solve(0, *batches(1)[0], torch.zeros(M, D))
