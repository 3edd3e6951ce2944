"""Singular subspaces, energy ranks and drift measures against definitions and hand-made cases."""

import itertools
import math

import pytest
import torch

from lit_edit.algebra import leading
from lit_edit.algebra.drift import MEASURES, cosine, drift, sizes
from lit_edit.algebra.key_memory import KeyMemory
from lit_edit.algebra.similarity import (
    assign,
    effective_rank,
    matched_subspace_similarity,
    matched_vector_similarity,
    principal_angles,
    stable_rank,
)
from lit_edit.delta import Delta
from lit_edit.guards import REVIVE
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


def test_ranks_by_hand():
    assert stable_rank(5.0, 3.0) == pytest.approx(25 / 9) and stable_rank(0.0, 0.0) == 0.0
    assert effective_rank(torch.ones(7)) == pytest.approx(7.0)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.zeros(3)) == 0.0


def test_principal_angles_by_hand():
    """Two planes that share a direction and meet at 30 degrees in the other; and angles that a cosine alone cannot tell."""
    eye = torch.eye(4, dtype=torch.float64)
    turned = eye[:, :2].clone()
    turned[1, 1], turned[2, 1] = math.cos(math.pi / 6), math.sin(math.pi / 6)
    assert principal_angles(eye[:, :2], turned).tolist() == pytest.approx([0.0, 30.0], abs=1e-9)
    assert principal_angles(eye[:, :2], eye[:, 2:]).tolist() == pytest.approx([90.0, 90.0])
    tiny = torch.tensor([[1.0], [1e-9], [0.0], [0.0]], dtype=torch.float64)
    assert float(principal_angles(eye[:, :1], tiny)) == pytest.approx(math.degrees(1e-9), rel=1e-6)
    # In a space of 3, two planes have only one direction outside of each other.
    assert principal_angles(eye[:3, :2], eye[:3, 1:3]).tolist() == pytest.approx([0.0, 90.0], abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_the_best_of_all(seed):
    score = normal(4, 6, seed=seed)
    best = max(sum(float(score[i, j]) for i, j in enumerate(p)) for p in itertools.permutations(range(6), 4))
    found = assign(score)
    assert len(set(found)) == 4 and sum(float(score[i, j]) for i, j in enumerate(found)) == pytest.approx(best)


def test_assignment_with_ties_and_without_room():
    assert sorted(assign(torch.zeros(3, 3))) == [0, 1, 2]
    with pytest.raises(ValueError, match="3 rows"):
        assign(torch.zeros(3, 2))


def test_random_subspaces_have_the_stated_baselines():
    rows, columns, rank, rounds = 60, 200, 12, 20
    pairs = [
        (decompose(normal(rows, columns, seed=2 * i)), decompose(normal(rows, columns, seed=2 * i + 1))) for i in range(rounds)
    ]
    left = sum(subspace_similarity(a.left[:, :rank], b.left[:, :rank]) for a, b in pairs) / rounds
    right = sum(subspace_similarity(a.right[:, :rank], b.right[:, :rank]) for a, b in pairs) / rounds
    assert left == pytest.approx(rank / rows, rel=0.1) and right == pytest.approx(rank / columns, rel=0.1)
    vectors = sum(vector_similarity(a.left[:, :rank], b.left[:, :rank]) for a, b in pairs) / rounds
    assert vectors == pytest.approx(math.sqrt(2 / (math.pi * rows)), rel=0.15)
    ordered = rank / 2 * (1 / rows + 1 / columns)
    matched = sum(matched_subspace_similarity(a.subspace(rank), b) for a, b in pairs) / rounds
    assert ordered < matched < 2 * ordered


def test_overtaken_triples_still_match():
    """Triples stay, and five larger ones push them out of the top: ordered similarity falls to 0, the matched one stays 1."""
    weight = normal(16, 40)
    original, (u, s, vt) = decompose(weight), torch.linalg.svd(weight, full_matrices=False)
    new = weight + sum(10 * float(s[0]) * (1 + i) * torch.outer(u[:, 10 + i], vt[10 + i]) for i in range(5))
    then, now = original.subspace(4), decompose(new)
    assert subspace_similarity(then.left, now.left[:, :4]) < 1e-9 and vector_similarity(then.left, now.left[:, :4]) < 1e-6
    assert matched_subspace_similarity(then, now) == pytest.approx(1.0, abs=1e-6)
    assert matched_vector_similarity(then, now) == pytest.approx(1.0, abs=1e-6)
    assert matched_vector_similarity(then, original) == pytest.approx(1.0, abs=1e-6)
    turned = decompose(weight + 3 * normal(16, 40, seed=9))
    assert 0.2 < matched_vector_similarity(then, turned) < 0.95
    assert (
        matched_subspace_similarity(then, turned)
        >= (subspace_similarity(then.left, turned.left[:, :4]) + subspace_similarity(then.right, turned.right[:, :4])) / 2
    )


def test_an_unchanged_weight_has_not_drifted():
    weight = normal(24, 60).float()
    found = drift(decompose(weight), weight, weight, 0.2)
    for name in ("ls", "ls_left", "ls_right", "ls_matched", "ss", "ss_left", "ss_right", "ss_matched", "relative_norm"):
        assert found[name] == pytest.approx(1.0, abs=1e-6), name
    assert found["angle_max_left"] == pytest.approx(0, abs=1e-4) and found["triple_drift"] == found["protected_share"] == 0.0
    assert found["delta_norm"] == found["delta_sigma_max"] == 0.0 and "delta_condition_number" not in found


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
def test_drift_by_definition(shape):
    first, change = normal(*shape).float(), (normal(shape[0], 5) @ normal(5, shape[1], seed=1)).float() / 3
    now = first + change
    original, tau = decompose(first), 0.2
    rank = energy_rank(original.sigma, tau)
    found = drift(original, first, now, tau)
    s, d = torch.linalg.svdvals(now.double()), torch.linalg.svdvals(change.double())[:5]
    p, q = s / s.sum(), d / d.sum()
    expected = {
        "norm": now.double().norm(),
        "delta_norm": change.double().norm(),
        "sigma_max": s[0],
        "delta_sigma_max": d[0],
        "condition_number": s[0] / s[-1],
        "stable_rank": now.double().norm() ** 2 / s[0] ** 2,
        "effective_rank": (-(p * p.log()).sum()).exp(),
        "delta_condition_number": d[0] / d[-1],
        "delta_stable_rank": d.square().sum() / d[0] ** 2,
        "delta_effective_rank": (-(q * q.log()).sum()).exp(),
        "delta_rank": torch.tensor(5.0),
        "triple_drift": torch.tensor(triple_drift(original, now, rank)),
        "protected_share": torch.tensor(protected_share(change, original.subspace(rank))),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=2e-5), name
    assert (
        found["ls"] == (found["ls_left"] + found["ls_right"]) / 2 and found["ss"] == (found["ss_left"] + found["ss_right"]) / 2
    )
    assert set(found) <= set(MEASURES) and len(MEASURES) == len(set(MEASURES))


def test_a_look_by_iteration_agrees_with_a_full_one_and_leaves_out_the_rest(monkeypatch):
    left, right = torch.linalg.qr(normal(300, 300)).Q, torch.linalg.qr(normal(500, 300, seed=1)).Q
    first = ((left * torch.arange(1, 301) ** -0.4) @ right.T).float()
    now = first + 0.002 * (normal(300, 9) @ normal(9, 500, seed=1)).float()
    original = decompose(first)
    monkeypatch.setattr("lit_edit.algebra.drift.EXACT_SIDE", 100)
    monkeypatch.setattr(leading, "EXACT_SIDE", 100)
    full, quick = drift(original, first, now, 0.1, True), drift(original, first, now, 0.1, False)
    missing = {"condition_number", "effective_rank", "ls_matched", "ss_matched"}
    assert set(full) - set(quick) == missing | {"delta_condition_number", "delta_effective_rank", "delta_rank"}
    assert 0.1 < quick["ls"] < 0.99
    for name, value in quick.items():
        assert value == pytest.approx(full[name], rel=2e-6, abs=2e-6), name


def test_guarded_edits_keep_triples_while_the_order_changes():
    """REVIVE: LS by order falls when new values outgrow the protected ones; the triples are untouched, and matched stays 1."""
    first = normal(20, 60).float()
    original, guard = decompose(first), REVIVE(tau=0.1)
    guard.prepare(0, first, original)
    now = first.clone()
    for batch in range(5):
        delta = Delta.low_rank(normal(20, 3, seed=batch), 3 * normal(3, 60, seed=batch + 50))
        now = now + guard(0, delta, now).dense().float()
    found = drift(original, first, now, 0.1)
    assert found["triple_drift"] < 1e-4 and found["protected_share"] < 1e-9
    assert found["ls"] < 1e-6 and found["ss"] < 1e-6, "pushed out of the top altogether"
    assert found["ls_matched"] == pytest.approx(1, abs=1e-6) and found["ss_matched"] == pytest.approx(1, abs=1e-4)
    assert found["delta_sigma_max"] > float(original.sigma[0])


def test_sizes_and_cosines_of_changes():
    thin = Delta.low_rank(normal(20, 3), normal(3, 50, seed=1))
    other = Delta.low_rank(normal(20, 2, seed=2), normal(2, 50, seed=3))
    for one in (thin, Delta.from_dense(thin.dense())):
        dense = thin.dense()
        assert sizes(one) == pytest.approx((float(dense.norm()), float(torch.linalg.matrix_norm(dense, 2))), rel=1e-9)
        expected = float((dense * other.dense()).sum() / dense.norm() / other.dense().norm())
        assert cosine(one, other) == pytest.approx(expected, rel=1e-9)
        assert cosine(one, thin) == pytest.approx(1.0)
    assert cosine(thin, Delta.from_dense(torch.zeros(20, 50))) is None


def test_key_cosines_by_hand_and_with_a_bound():
    memory, first = KeyMemory(4), torch.eye(6)[:2]
    assert memory.cosines(0, first) == {}
    memory.add(0, first)
    new = torch.tensor([[3.0, 4.0, 0, 0, 0, 0], [0, 0, -2.0, 0, 0, 0]])
    assert memory.cosines(0, new) == pytest.approx({"key_cosine_max": 0.8, "key_cosine_mean": 0.4, "key_memory_share": 1.0})
    memory.add(0, new)
    assert memory.cosines(0, 7 * new)["key_cosine_mean"] == pytest.approx(1.0, abs=1e-6)
    memory.add(0, normal(6, 6))
    assert memory.cosines(0, new)["key_memory_share"] == pytest.approx(0.4)
    assert memory.cosines(1, new) == {}


def test_the_sample_of_keys_is_uniform_and_does_not_depend_on_batches():
    kept = torch.zeros(12)
    for seed in range(300):
        whole, parts = KeyMemory(4, seed), KeyMemory(4, seed)
        whole.add(0, torch.eye(12))
        for start in range(0, 12, 5):
            parts.add(0, torch.eye(12)[start : start + 5])
        assert torch.equal(whole.state()["kept"][0], parts.state()["kept"][0])
        kept += whole.state()["kept"][0].float().sum(0)
    # 300 * 4 / 12 = 100 each, standard deviation 8.2.
    assert kept.sum() == 1200 and float((kept - 100).abs().max()) < 33
