"""Leading singular triples and norms by iteration, against a full decomposition of the same matrix."""

import pytest
import torch

from lit_edit.algebra import leading
from lit_edit.algebra.leading import gram, leading_eigenpairs, leading_triples, singular_values, spectral_norm
from tests.tiny import normal


@pytest.fixture(autouse=True)
def iterate(monkeypatch):
    """Let matrices of a size that tests can afford be large ones; say what was decomposed in full, by its size."""
    monkeypatch.setattr(leading, "EXACT_SIDE", 32)
    eigh, sizes = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (sizes.append(len(matrix)), eigh(matrix))[1])
    return sizes


def decaying(rows, columns, power=0.5):
    """Singular values that fall as a power of their rank."""
    side = min(rows, columns)
    left = torch.linalg.qr(normal(rows, side)).Q
    right = torch.linalg.qr(normal(columns, side, seed=1)).Q
    return (left * torch.arange(1, side + 1, dtype=torch.float64) ** -power) @ right.T


def agree(matrix, count, angle=1e-6):
    """Values, vectors one by one, and that left, value and right belong together."""
    left, sigma, right = leading_triples(matrix, count)
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(sigma, s[:count], rtol=1e-9, atol=1e-9 * float(s[0]))
    for ours, theirs in ((left, u[:, :count]), (right, vt[:count].T)):
        assert float((ours - theirs * (ours * theirs).sum(0)).norm(dim=0).max()) < angle
        torch.testing.assert_close(ours.T @ ours, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(matrix.double() @ right, left * sigma, rtol=0, atol=1e-6 * float(s[0]))


@pytest.mark.parametrize("shape", [(320, 700), (700, 320), (320, 320)])
@pytest.mark.parametrize("count", [1, 20])
def test_iteration_is_the_svd(iterate, shape, count):
    agree(decaying(*shape), count)
    assert 320 not in iterate, "nothing was decomposed in full"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strong_new_directions(iterate, dtype):
    """Ten times the largest singular value, outside of what was dominant before: an iteration must not miss them."""
    before = decaying(320, 700)
    u, _, vt = torch.linalg.svd(before, full_matrices=False)
    strong = before + 10 * torch.outer(u[:, 200], vt[310]) + 7 * torch.outer(normal(320), normal(700)) / (320 * 700) ** 0.5
    agree(strong.to(dtype), 12)
    assert 320 not in iterate


def test_coinciding_values_are_left_to_the_full_decomposition(iterate):
    """Between equal values there are no single vectors to be certain of; their span is there all the same."""
    left, right = torch.linalg.qr(normal(320, 320)).Q, torch.linalg.qr(normal(700, 320, seed=1)).Q
    sigma = torch.linspace(2, 1, 320, dtype=torch.float64)
    sigma[:4], sigma[9:13] = 3.0, 1.95
    u, s, v = leading_triples((left * sigma) @ right.T, 11)
    assert 320 in iterate, "the tie across the 11th value cannot be cut by an iteration"
    torch.testing.assert_close(s, sigma.sort(descending=True).values[:11], rtol=1e-9, atol=0)
    for ours, theirs in ((u, left), (v, right)):
        torch.testing.assert_close(ours[:, :4] @ ours[:, :4].T, theirs[:, :4] @ theirs[:, :4].T, rtol=0, atol=1e-8)


def test_a_narrow_gap_is_resolved():
    left, right = torch.linalg.qr(normal(320, 320)).Q, torch.linalg.qr(normal(700, 320, seed=1)).Q
    sigma = torch.arange(1, 321, dtype=torch.float64) ** -0.5
    sigma[5], sigma[9] = sigma[4] * (1 - 1e-6), sigma[8] * (1 - 1e-6)
    agree((left * sigma) @ right.T, 9)


@pytest.mark.parametrize("count", [5, 30])
def test_rank_deficient(count):
    thin = normal(320, 12) @ normal(12, 700, seed=1)
    left, sigma, right = leading_triples(thin, count)
    s = torch.linalg.svdvals(thin)
    torch.testing.assert_close(sigma[:12], s[:12][:count], rtol=1e-9, atol=0)
    assert float(sigma[12:].sum()) == 0.0 and float(right[:, 12:].abs().sum()) == 0.0
    assert float(torch.linalg.svdvals(thin - (left * sigma) @ right.T)[0]) == pytest.approx(
        float(s[count]), abs=1e-9 * float(s[0])
    )


@pytest.mark.parametrize("shape", [(48, 100), (100, 48)])
def test_all_of_them(iterate, shape):
    agree(decaying(*shape), 48, angle=1e-5)
    assert iterate == [48]


def test_a_missed_direction_is_noticed(monkeypatch):
    """Pairs that are exact but not the leading ones must not pass, and a start without the leading one still finds it."""
    values = torch.arange(1, 321, dtype=torch.float64) ** -0.5
    values[0] = 50.0
    matrix, eye = torch.diag(values), torch.eye(320, dtype=torch.float64)
    assert leading._none_missed(matrix, values, eye[:, :3])
    assert not leading._none_missed(matrix, values[1:], eye[:, 1:4])
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: randn(*size, **how).index_fill_(0, torch.tensor([0]), 0.0))
    values_found, vectors = leading_eigenpairs(matrix, 3)
    torch.testing.assert_close(values_found, values[:3], rtol=1e-10, atol=0)
    assert float(vectors[0, 0].abs()) == pytest.approx(1.0)


def test_the_same_every_time_and_random_state_untouched():
    matrix, state = decaying(320, 700), torch.get_rng_state()
    first, second = leading_triples(matrix, 9), leading_triples(matrix, 9)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("matrix", [decaying(320, 700), decaying(700, 320), normal(400, 600), 1e-30 * decaying(320, 700)])
def test_spectral_norm(matrix):
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-9)
    assert spectral_norm(matrix.float()) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5)


def test_spectral_norm_of_nothing_and_of_little():
    assert spectral_norm(torch.zeros(320, 700)) == 0.0
    assert spectral_norm(normal(320, 1) @ normal(1, 700)) == pytest.approx(
        float(normal(320).norm() * normal(700).norm()), rel=1e-9
    )


def test_gram_and_singular_values():
    matrix = normal(1100, 40)
    torch.testing.assert_close(gram(matrix), matrix @ matrix.T, rtol=0, atol=1e-11)
    for one in (matrix, matrix.T, normal(50, 60)):
        torch.testing.assert_close(singular_values(one), torch.linalg.svdvals(one), rtol=1e-9, atol=0)
