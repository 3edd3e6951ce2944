"""Guards besides REVIVE: each does what its formula says, on thin and on dense changes, and nothing else."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_edit import guards
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.guards import PRUNE, RECT, REVIVE, SPHERE, NormCap, RandomSubspace
from lit_edit.guards.normcap import largest_step
from lit_edit.guards.prune import leading, restrain, restraining
from lit_edit.guards.sphere import soft_directions
from lit_edit.spectrum import decompose, energy_rank
from tests.tiny import normal

M, D = 10, 24
WEIGHT = normal(M, D)
SIGMA_MAX = float(torch.linalg.svdvals(WEIGHT)[0])
RESTRAINTS = ["log", "log2", "log1_5", "log1_2", "linear"]


def thin(seed, rank=4, scale=1.0):
    return Delta.low_rank(scale * normal(M, rank, seed=seed), normal(rank, D, seed=seed + 1000))


def dense(seed, scale=1.0):
    return Delta.from_dense(thin(seed, scale=scale).dense())


def ready(guard, weight=WEIGHT, spectrum=None):
    guard.prepare(0, weight, spectrum)
    return guard


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def tall(matrix):
    """The same test on a weight with more rows than columns."""
    return matrix.T.contiguous()


# ----------------------------------------------------------------------------------------------------------------- PRUNE


@pytest.mark.parametrize("restraint", RESTRAINTS)
def test_restraint_is_the_identity_below_continuous_at_and_increasing_above_sigma_max(restraint):
    below = torch.linspace(0, 2.999, 50, dtype=torch.float64)
    assert torch.equal(restrain(below, 3.0, restraint), below)
    at = torch.tensor([3.0, 3.0 + 1e-9], dtype=torch.float64)
    close(restrain(at, 3.0, restraint), torch.full((2,), 3.0, dtype=torch.float64), 1e-8)
    above = torch.linspace(3, 300, 200, dtype=torch.float64)
    mapped = restrain(above, 3.0, restraint)
    assert bool((mapped.diff() > 0).all())
    slope = {"log": 1 / 3, "log2": 1 / (3 * 0.6931471805599453), "linear": 0.5}.get(restraint)
    if slope is not None:
        assert float((mapped[1] - 3.0) / (above[1] - 3.0)) == pytest.approx(slope, rel=0.5)


def test_restraint_has_the_published_values():
    sigma = torch.tensor([8.0], dtype=torch.float64)
    assert float(restrain(sigma, 2.0, "log2")) == pytest.approx(4.0)  # log2(8) - log2(2) + 2
    assert float(restrain(sigma, 2.0, "linear")) == pytest.approx(5.0)
    assert float(restrain(sigma, 2.0, "log")) == pytest.approx(3.3862943611198906)
    assert float(restrain(sigma, 2.0, "log1_2")) == pytest.approx(2 + 1.3862943611198906 / 0.1823215567939546)


@pytest.mark.parametrize("rank", [1, 4, 13])
def test_factored_and_dense_triples_agree(rank):
    change = thin(1, rank=rank)
    for turned in (change, Delta.low_rank(change.right.T, change.left.T)):
        u, s, v = leading(turned, lambda sigma: min(rank, 3))
        du, ds, dv = leading(Delta.from_dense(turned.dense()), lambda sigma: min(rank, 3))
        exact = torch.linalg.svdvals(turned.dense())[: len(s)]
        close(s, exact)
        close(ds, exact)
        close((u * s) @ v.T, (du * ds) @ dv.T)
        close(dv.T @ dv, torch.eye(len(s), dtype=torch.float64))


def test_dense_triples_reach_down_to_their_noise():
    basis = torch.linalg.qr(normal(M, 3)).Q, torch.linalg.qr(normal(D, 3)).Q
    sizes = torch.tensor([1.0, 1e-5, 1e-9], dtype=torch.float64)
    u, s, v = leading(Delta.from_dense((basis[0] * sizes) @ basis[1].T), len)
    torch.testing.assert_close(s, sizes[:2], rtol=1e-4, atol=0)
    close((u.T @ basis[0][:, :2]).abs(), torch.eye(2, dtype=torch.float64), 1e-4)
    close(v.T @ v, torch.eye(2, dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("restraint", RESTRAINTS)
def test_factored_and_dense_restraints_agree_with_the_formula(restraint):
    change = thin(2, scale=0.8)
    u, s, vt = torch.linalg.svd(change.dense(), full_matrices=False)
    wanted = (u * restrain(s, SIGMA_MAX, restraint)) @ vt - change.dense()
    above = int((s >= SIGMA_MAX).sum())
    assert 0 < above < int((s > 1e-9).sum())
    for form in (change, Delta.from_dense(change.dense())):
        correction = restraining(form, SIGMA_MAX, restraint)
        close(correction.dense(), wanted)
        assert correction.factors[0].shape[1] == above


def test_prune_view_edits_freely_and_shows_the_restrained_weight():
    guard, delta = ready(PRUNE("log", "view")), thin(3, scale=0.8)
    assert guard(0, delta, WEIGHT) is delta
    edited = WEIGHT + delta.dense()
    u, s, vt = torch.linalg.svd(edited - WEIGHT, full_matrices=False)
    close(guard.view(0, edited), WEIGHT + (u * restrain(s, SIGMA_MAX, "log")) @ vt, 1e-10)
    assert guard.view(0, edited.float()).dtype == torch.float32
    small = WEIGHT + 0.01 * thin(4).dense()
    assert torch.equal(guard.view(0, small), small)


@pytest.mark.parametrize("form", [thin, dense])
def test_prune_persistent_writes_what_view_shows(form):
    view, persistent = ready(PRUNE("log2", "view")), ready(PRUNE("log2", "persistent"))
    delta = form(5, scale=0.8)
    written = persistent(0, delta, WEIGHT)
    assert written.is_low_rank == delta.is_low_rank
    close(WEIGHT + written.dense(), view.view(0, WEIGHT + delta.dense()), 1e-10)
    edited = WEIGHT + written.dense()
    assert torch.equal(persistent.view(0, edited), edited)
    # The second change is restrained together with the first one.
    more = persistent(0, form(6, scale=2.0), edited)
    close(edited + more.dense(), view.view(0, edited + form(6, scale=2.0).dense()), 1e-10)


def test_prune_persistent_bounds_what_grows_without_it():
    free, held, guard = WEIGHT, WEIGHT, ready(PRUNE("log", "persistent"))
    for step in range(100):
        free = free + thin(step).dense()
        held = held + guard(0, thin(step), held).dense()
    largest = [float(torch.linalg.matrix_norm(weight - WEIGHT, 2)) for weight in (free, held)]
    assert largest[0] > 10 * SIGMA_MAX
    assert largest[1] < 2 * SIGMA_MAX


def test_prune_leaves_small_and_broken_changes_alone():
    guard = ready(PRUNE("log", "persistent"))
    for delta in (thin(7, scale=0.01), Delta.from_dense(torch.full((M, D), float("nan"), dtype=torch.float64))):
        assert guard(0, delta, WEIGHT) is delta


def test_prune_takes_a_spectrum_that_is_there():
    spectrum = decompose(2 * WEIGHT)  # not this weight's, to see that it is used
    guard, delta = ready(PRUNE("log", "persistent"), spectrum=spectrum), thin(8, scale=2.0)
    close(guard(0, delta, WEIGHT).dense() - delta.dense(), restraining(delta, 2 * SIGMA_MAX, "log").dense())


# ------------------------------------------------------------------------------------------------------------------ RECT


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
