"""Singular subspaces, energy ranks and drift measures against definitions and hand-made cases."""

import math

import pytest
import torch

from lit_edit.spectrum import (
    Subspace,
    decompose,
    energy_rank,
    protected_share,
    subspace_similarity,
    triple_drift,
    vector_similarity,
)
from tests.tiny import normal


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_decompose_is_the_svd(shape):
    weight = normal(*shape)
    ours, (u, s, vt) = decompose(weight), torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(ours.sigma, s, rtol=1e-10, atol=0)
    assert ours.left.shape == (shape[0], min(shape)) and ours.right.shape == (shape[1], min(shape))
    # Signs are free: compare the products.
    for i in range(min(shape)):
        ours_i = torch.outer(ours.left[:, i], ours.right[:, i]).double()
        torch.testing.assert_close(ours_i, torch.outer(u[:, i], vt[i]), rtol=0, atol=1e-6)
    assert ours.condition_number() == pytest.approx(float(s[0] / s[-1]), rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 15), (15, 6)])
def test_directions_without_energy_have_no_vectors_on_the_long_side(shape):
    weight = normal(shape[0], 2) @ normal(2, shape[1], seed=1)
    found = decompose(weight)
    long = found.right if shape[0] < shape[1] else found.left
    assert float(long[:, 2:].abs().max()) < 1e-6
    torch.testing.assert_close(long[:, :2].T @ long[:, :2], torch.eye(2), rtol=0, atol=1e-6)


def test_a_singular_weight_has_no_finite_condition_number():
    assert decompose(torch.diag(torch.tensor([2.0, 1.0, 0.0]))).condition_number() == math.inf


@pytest.mark.parametrize(
    ("share", "energy", "rule", "rank"),
    [
        (0.3, "sigma", "at_least", 1),  # 4/10 reaches it
        (0.4, "sigma", "at_least", 1),  # exactly is enough
        (0.41, "sigma", "at_least", 2),
        (0.95, "sigma", "at_least", 4),
        (0.3, "sigma", "released", 0),  # the first direction alone exceeds it: none protected
        (0.41, "sigma", "released", 1),
        (0.71, "sigma", "released", 2),
        (0.52, "sigma2", "at_least", 1),  # 16/30
        (0.54, "sigma2", "at_least", 2),
        (0.54, "sigma2", "released", 1),
    ],
)
def test_energy_rank_by_hand(share, energy, rule, rank):
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert energy_rank(sigma, share, energy, rule) == rank


def test_similarities_by_hand():
    eye = torch.eye(4)
    assert subspace_similarity(eye[:, :2], eye[:, :2]) == vector_similarity(eye[:, :2], eye[:, :2]) == 1.0
    assert subspace_similarity(eye[:, :2], eye[:, 2:]) == vector_similarity(eye[:, :2], eye[:, 2:]) == 0.0
    # Swapped order: the same subspace, other vectors.
    assert subspace_similarity(eye[:, :2], eye[:, [1, 0]]) == 1.0
    assert vector_similarity(eye[:, :2], eye[:, [1, 0]]) == 0.0
    # Signs do not matter, and 30 degrees in one of two directions is cos^2 = 3/4 and cos = sqrt(3)/2.
    turned = torch.tensor([[1.0, 0.0], [0.0, -math.cos(math.pi / 6)], [0.0, math.sin(math.pi / 6)], [0.0, 0.0]])
    assert subspace_similarity(eye[:, :2], turned) == pytest.approx((1 + 0.75) / 2, rel=1e-6)
    assert vector_similarity(eye[:, :2], turned) == pytest.approx((1 + math.sqrt(3) / 2) / 2, rel=1e-6)
    assert vector_similarity(eye[:, :0], eye[:, :0]) == 1.0


def test_triple_drift_is_zero_while_triples_are_intact():
    weight = normal(8, 20)
    original = decompose(weight)
    u, s, vt = torch.linalg.svd(weight, full_matrices=True)
    # A large change outside the first three directions pushes them out of the top but leaves them triples.
    outside = weight + 100 * torch.outer(u[:, 5], vt[10])
    assert triple_drift(original, weight, 3) < 1e-6
    assert triple_drift(original, outside, 3) < 1e-4
    assert triple_drift(original, outside, 6) > 1.0
    shifted = weight + 0.5 * s[1] * torch.outer(u[:, 1], vt[1])
    assert triple_drift(original, shifted, 2) == pytest.approx(0.5, rel=1e-4)
    assert triple_drift(original, shifted, 1) < 1e-6 and triple_drift(original, shifted, 0) == 0.0


def test_protected_share_by_hand():
    eye = torch.eye(3, dtype=torch.float64)
    guarded = Subspace(eye[:, :1], eye[:, :1])
    assert protected_share(torch.ones(3, 3), guarded) == pytest.approx(5 / 9)
    assert protected_share(torch.diag(torch.tensor([0.0, 1.0, 1.0])), guarded) == 0.0
    assert protected_share(torch.diag(torch.tensor([1.0, 0.0, 0.0])), guarded) == 1.0
    assert protected_share(torch.zeros(3, 3), guarded) == 0.0
    assert guarded.rank == 1
