"""SPHERE, NormCap and RandomSubspace, and what all guards report: thin or dense, each does what its formula says, and nothing else."""

from pathlib import Path

import pytest
import torch
import yaml
from guarding import WEIGHT, D, M, close, dense, ready, thin

from lit_edit import guards
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards import L2SP, PRUNE, RECT, REVIVE, SPHERE, NormCap, RandomSubspace
from lit_edit.guards.normcap import largest_step
from lit_edit.guards.sphere import soft_directions
from lit_edit.spectrum import decompose, energy_rank
from tests.tiny import normal


def tall(matrix):
    """The same test on a weight with more rows than columns."""
    return matrix.T.contiguous()


# ---------------------------------------------------------------------------------------------------------------- SPHERE


def released(weight, delta, eta, alpha):
    """The formula by the eigenproblem of the full width."""
    unit = weight / (weight.norm(dim=1, keepdim=True) + 1e-8)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    r = int((values.flip(0).cumsum(0) / values.sum() <= eta).sum()) + 1
    basis = vectors[:, -r:]
    return delta - alpha * delta @ basis @ basis.T, r


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("turn", [lambda matrix: matrix, tall])
@pytest.mark.parametrize("form", [thin, dense])
def test_sphere_is_the_released_eigenproblem(eta, turn, form):
    weight, full = turn(WEIGHT), turn(form(20).dense())
    if form is thin:
        left, right = (form(20).factors) if turn is not tall else tuple(f.T for f in reversed(form(20).factors))
        delta = Delta.low_rank(left, right)
    else:
        delta = Delta.from_dense(full)
    guard = SPHERE(eta, 0.5)
    wanted, r = released(weight, full, eta, 0.5)
    cut = guard(0, delta, weight)
    close(cut.dense(), wanted)
    assert guard.soft(0).right.shape == (weight.shape[1], r) and guard.soft(0).left.shape[1] == 0
    assert cut.is_low_rank == delta.is_low_rank
    if cut.is_low_rank:
        assert cut.factors[0].shape[1] == delta.factors[0].shape[1]
    # The output side is the same on the transposed problem, which is what the released code does to GPT-2.
    close(SPHERE(eta, 0.5, side="output")(0, Delta.from_dense(full.T), weight.T).dense(), wanted.T)


def test_sphere_is_a_projection_with_alpha_1_only():
    for alpha, idempotent in ((1.0, True), (0.5, False)):
        guard = SPHERE(0.5, alpha)
        once = guard(0, thin(21), WEIGHT)
        again = guard(0, once, WEIGHT)
        assert (float((again.dense() - once.dense()).norm()) < 1e-11) == idempotent
        basis = soft_directions(WEIGHT, 0.5)
        close(once.dense() @ basis, (1 - alpha) * thin(21).dense() @ basis)


def test_sphere_follows_the_current_weight_and_survives_empty_rows():
    guard, moved = SPHERE(0.5, 1.0), WEIGHT + 3 * normal(M, D, seed=22)
    first = guard(0, thin(22), WEIGHT).dense()
    assert float((guard(0, thin(22), moved).dense() - first).norm()) > 1e-2
    close(guard(0, thin(22), WEIGHT * torch.arange(1, M + 1)[:, None]).dense(), first, 1e-6)  # only directions of rows count
    holed = WEIGHT.clone()
    holed[3] = 0
    assert guard(0, thin(22), holed).is_finite()
    close(guard(0, thin(22), torch.zeros_like(WEIGHT)).dense(), thin(22).dense())


# --------------------------------------------------------------------------------------------------------------- NormCap


@pytest.mark.parametrize("form", [thin, dense])
def test_normcap_never_exceeds_is_exact_when_it_binds_and_idempotent(form):
    limit = 0.3 * float(WEIGHT.norm())
    guard = ready(NormCap(per_batch=2.0, of_original=0.3))
    weight, bound = WEIGHT.clone(), [False, False]
    for step in range(40):
        delta = form(step, scale=0.02 if step == 0 else 0.1)
        cut = guard(0, delta, weight)
        assert cut.is_low_rank == delta.is_low_rank
        assert float(cut.norm()) <= 2.0 * (1 + 1e-12)
        close(guard(0, cut, weight).dense(), cut.dense(), 1e-9)
        scale = float(cut.norm() / delta.norm())
        close(cut.dense(), scale * delta.dense(), 1e-12)  # the direction stays
        weight = weight + cut.dense()
        size = float((weight - WEIGHT).norm())
        assert size <= limit * (1 + 1e-12)
        if scale < 1 - 1e-9:  # some bound binds, and that one exactly
            gaps = abs(float(cut.norm()) - 2.0), abs(size - limit)
            assert min(gaps) < 1e-9 or scale == 0
            bound = [bound[0] or gaps[0] < 1e-9, bound[1] or gaps[1] < 1e-9]
    assert bound == [True, True]


def test_normcap_lets_small_changes_pass_as_they_are():
    delta = thin(30, scale=1e-3)
    assert ready(NormCap(per_batch=1.0, of_original=1.0))(0, delta, WEIGHT) is delta
    nothing = Delta.from_dense(torch.zeros(M, D, dtype=torch.float64))
    assert ready(NormCap(of_original=1.0))(0, nothing, WEIGHT) is nothing


def test_normcap_outside_already():
    guard, out = ready(NormCap(of_original=0.1)), WEIGHT * 2
    assert float(guard(0, Delta.from_dense(WEIGHT), out).norm()) == 0  # further out
    assert float(guard(0, Delta.from_dense(-0.5 * WEIGHT), out).norm()) == 0  # back, and not far enough
    home = guard(0, Delta.from_dense(-WEIGHT), out)
    close(out + home.dense(), WEIGHT)
    # A step over the ball and beyond ends where it leaves the ball.
    close(out + guard(0, Delta.from_dense(-5 * WEIGHT), out).dense(), 0.9 * WEIGHT, 1e-9)


def test_largest_step_is_the_root():
    for seed in range(50):
        start, delta = normal(6, seed=seed), 3 * normal(6, seed=seed + 100)
        limit = float(start.norm()) * (0.5 + seed / 25)
        step = largest_step(float(start.norm()), float(start @ delta), float(delta.norm()), limit)
        grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
        inside = (start + grid[:, None] * delta).norm(dim=1) <= limit
        best = float(grid[inside].max()) if bool(inside.any()) else 0.0
        assert abs(step - best) < 1e-4
        assert step in (0.0, 1.0) or float((start + step * delta).norm()) == pytest.approx(limit, rel=1e-12)


# --------------------------------------------------------------------------------------------------------- RandomSubspace


@pytest.mark.parametrize("form", [thin, dense])
@pytest.mark.parametrize("side", ["both", "left", "right"])
def test_random_subspace_protects_its_directions(form, side):
    guard, delta = ready(RandomSubspace(k=3, side=side)), form(40)
    space, cut = guard.protected(0), guard(0, form(40), WEIGHT)
    assert (space.left.shape[1], space.right.shape[1]) == {"both": (3, 3), "left": (3, 0), "right": (0, 3)}[side]
    for basis in (space.left, space.right):
        close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    close(space.left.T @ cut.dense(), torch.zeros(space.left.shape[1], D, dtype=torch.float64))
    close(cut.dense() @ space.right, torch.zeros(M, space.right.shape[1], dtype=torch.float64))
    close(guard(0, cut, WEIGHT).dense(), cut.dense())
    assert cut.is_low_rank == delta.is_low_rank
    assert 0 < float(cut.norm()) < float(delta.norm())


def test_random_subspace_is_the_same_again_and_another_elsewhere():
    first = ready(RandomSubspace(k=3, seed=5)).protected(0)
    torch.manual_seed(99)
    torch.randn(7)
    again = RandomSubspace(k=3, seed=5)
    again.prepare(1, WEIGHT, None)
    again.prepare(0, WEIGHT, None)
    assert torch.equal(again.protected(0).left, first.left) and torch.equal(again.protected(0).right, first.right)
    others = [ready(RandomSubspace(k=3, seed=6)).protected(0), again.protected(1)]
    for other in others:
        assert float((other.left.T @ first.left).norm() ** 2) / 3 < 0.9
    assert torch.equal(ready(RandomSubspace(k=3, seed=5, side="right")).protected(0).right, first.right)


def test_random_subspace_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    ready(RandomSubspace(k=3))
    assert torch.equal(torch.randn(4), expected)


def test_random_subspace_protects_as_many_as_revive():
    control, revive = ready(RandomSubspace(tau=0.3)), ready(REVIVE(tau=0.3))
    assert control.needs_spectrum and not RandomSubspace(k=2).needs_spectrum
    assert control.protected(0).rank == revive.protected(0).rank == energy_rank(decompose(WEIGHT).sigma, 0.3)
    shared = ready(RandomSubspace(tau=0.3), spectrum=decompose(WEIGHT))
    assert torch.equal(shared.protected(0).left, control.protected(0).left)


# ------------------------------------------------------------------------------------------------------- reports, chains


@pytest.mark.parametrize("guard", [REVIVE(0.3), RandomSubspace(k=3), SPHERE(0.5, 1.0), SPHERE(0.5, 1.0, "output")])
@pytest.mark.parametrize("form", [thin, dense])
def test_reports_of_subspaces(guard, form):
    ready(guard)
    before = form(50)
    after = guard(0, before, WEIGHT)
    told = guard.report(0, before, after)
    share = 1 - float(after.norm() ** 2 / before.norm() ** 2)
    assert told["removed_share"] == pytest.approx(share)
    # What a projection removes is what lay on either side, counted once.
    assert told["overlap_left"] + told["overlap_right"] - told["overlap_both"] == pytest.approx(share, abs=1e-6)
    assert share > 0
    cleared = guard.report(0, after, guard(0, after, WEIGHT))
    assert all(value == pytest.approx(0, abs=1e-6) for value in cleared.values())


@pytest.mark.parametrize("guard", [RECT(), NormCap(per_batch=1.0), PRUNE("log", "persistent"), PRUNE()])
def test_reports_of_the_others(guard):
    ready(guard)
    after = guard(0, thin(51), WEIGHT)
    share = 1 - float(after.norm() ** 2 / thin(51).norm() ** 2)
    assert guard.report(0, thin(51), after) == {"removed_share": pytest.approx(share)}


def test_rect_then_revive_protects_what_revive_protects():
    rect, revive = RECT(0.3), ready(REVIVE(0.3))
    protected = revive.protected(0)
    chained = revive(0, rect(0, thin(52), WEIGHT), WEIGHT).dense()
    assert float((protected.left.double().T @ chained).norm()) < 1e-5
    turned = rect(0, revive(0, thin(52), WEIGHT), WEIGHT).dense()
    assert float((protected.left.double().T @ turned).norm()) > 1e-2


def test_every_guard_has_a_fragment_with_every_option():
    root = Path(__file__).parents[2] / "configs" / "guards"
    entries = [entry for path in sorted(root.glob("*.yaml")) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    named = {entry["class_path"] for entry in entries}
    assert named == set(guards.__all__) - {"Guard"}
    for entry in entries:
        kind = getattr(guards, entry["class_path"])
        code = kind.__init__.__code__
        assert set(entry["init_args"]) == set(code.co_varnames[1 : code.co_argcount]), entry["class_path"]
        kind(**entry["init_args"])


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PRUNE("sqrt"), "restraint is 'sqrt'"),
        (lambda: PRUNE(mode="later"), "mode is 'later'"),
        (lambda: ready(PRUNE(), torch.zeros(3, 4)), "layer 0"),
        (lambda: RECT(0.0), "keep is 0"),
        (lambda: RECT(1.0), "keep is 1"),
        (lambda: RECT(float("nan")), "keep is nan"),
        (lambda: RECT(epsilon=-1e-8), "epsilon is -1e-08"),
        (lambda: RECT(rule="most"), "rule is 'most'"),
        (lambda: SPHERE(eta=0.0), "eta is 0"),
        (lambda: SPHERE(eta=1.0), "eta is 1"),
        (lambda: SPHERE(alpha=0.0), "alpha is 0"),
        (lambda: SPHERE(alpha=1.5), "alpha is 1.5"),
        (lambda: SPHERE(side="left"), "side is 'left'"),
        (lambda: L2SP(1.0), "rho is 1"),
        (lambda: L2SP(0.0), "rho is 0"),
        (lambda: L2SP(float("nan")), "rho is nan"),
        (lambda: NormCap(), "give per_batch, of_original or both"),
        (lambda: NormCap(per_batch=0.0), "per_batch is 0"),
        (lambda: NormCap(of_original=float("inf")), "of_original is inf"),
        (lambda: RandomSubspace(), "either k or tau"),
        (lambda: RandomSubspace(k=2, tau=0.1), "either k or tau"),
        (lambda: RandomSubspace(k=0), "k is 0"),
        (lambda: RandomSubspace(tau=1.0), "tau is 1"),
        (lambda: RandomSubspace(k=2, side="up"), "side is 'up'"),
        (lambda: ready(RandomSubspace(k=M)), "has only 10"),
    ],
)
def test_bad_values_get_a_sentence(make, says):
    with pytest.raises(EditError, match=says):
        make()
