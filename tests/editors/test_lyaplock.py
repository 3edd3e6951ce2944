"""LyapLock in float64: the published formula, its queue, its state, and solving inside a subspace."""

import copy
import math

import pytest
import torch

from lit_edit.algebra.inverses import SpectralInverse
from lit_edit.batch.state import restore, snapshot
from lit_edit.editors.lyaplock import LyapLock
from lit_edit.errors import EditError
from lit_edit.moments import SecondMoment
from lit_edit.solver import solve
from lit_edit.spectrum import Subspace
from tests.tiny import normal

D, M, N = 24, 10, 4


def mean(seed=0):
    """A second moment over three decades; float32 numbers, as they are kept."""
    basis = torch.linalg.qr(normal(D, D, seed=seed)).Q
    found = (basis * torch.logspace(-2, 1, D, dtype=torch.float64)) @ basis.T
    return ((found + found.T) / 2).float().double()


def start(seed=0):
    return normal(M, D, seed=seed + 50).float().double()


def batches(count, seed=0, n=N):
    """Keys and residuals of some batches; keys are float32 numbers, as they are read."""
    keys = normal(count, n, D, seed=seed + 100).float().double()
    return list(zip(keys, normal(count, n, M, seed=seed + 200), strict=True))


def editor(seed=0, limit=1000, **options):
    made = LyapLock(**{"lam": 3.0, "alpha": 2.0, **options})
    made.allocate(0, M, D)
    made.account(0).limit = limit
    made.prepare(0, start(seed), SecondMoment(mean(seed).float(), 1))
    return made


class Published:
    """The released formulas as they stand, densely, with the output statistics V0 K0^T and the trace form of the loss."""

    def __init__(self, seed=0, lam=3.0, alpha=2.0, v=1.0, b=0.0):
        self.c, self.weight = mean(seed), start(seed)
        self.v0k0, self.v0v0 = self.weight @ self.c, torch.trace(self.weight @ self.c @ self.weight.T)
        self.lam, self.alpha, self.v, self.b = lam, alpha, v, b
        self.cp, self.vk = torch.zeros(D, D).double(), torch.zeros(M, D).double()
        self.base = self.queue = None

    def loss(self):
        w = self.weight
        return float(torch.trace(self.c @ w.T @ w) - 2 * torch.trace(self.v0k0 @ w.T) + self.v0v0)

    def step(self, keys, residuals):
        k, r, w = keys.T, residuals.T, self.weight
        first = self.base is None
        if first:
            right = r @ k.T + self.lam * (self.v0k0 - w @ self.c)
            left = k @ k.T + self.lam * self.c
        else:
            a = 1 / math.sqrt(self.alpha * self.base)
            price = a * self.queue * self.lam
            right = self.v * r @ k.T + price * (self.v0k0 - w @ self.c) + self.v * (self.vk - w @ self.cp)
            left = self.v * k @ k.T + price * self.c + self.v * self.cp
        delta = torch.linalg.solve(left, right.T).T
        self.weight = w + delta
        self.cp, self.vk = self.cp + k @ k.T, self.vk + self.weight @ k @ k.T
        if first:
            self.base = self.loss()
            self.queue = math.sqrt(self.alpha * self.base)
        else:
            moved = self.queue + a * (self.loss() - self.alpha * self.base) + self.b
            self.queue = max(moved, math.sqrt(self.alpha * self.base))
        return delta


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options", [{}, {"limit": 6}, {"limit": 6, "v": 2.5}, {"v": 2.5}, {"v": 0.3, "b": 0.4, "alpha": 1.1}, {"b": -100.0}]
)
def test_a_stream_is_the_published_dense_formula(seed, options):
    ours = editor(seed, **options)
    theirs = Published(seed, **{name: value for name, value in options.items() if name != "limit"})
    weight = start(seed)
    prices = []
    for keys, residuals in batches(6, seed):
        prices.append(ours.preservation(0))
        delta = ours.solve(0, keys, residuals, weight).dense()
        torch.testing.assert_close(delta, theirs.step(keys, residuals), rtol=1e-6, atol=1e-7)
        weight = weight + delta
        ours.remember(0, keys, weight)
        account = ours.account(0)
        assert float(account.base) == pytest.approx(theirs.base, rel=1e-7)
        assert float(account.queue) == pytest.approx(theirs.queue, rel=1e-6)
        assert float(account.drift) == pytest.approx(theirs.loss(), rel=1e-6)
    torch.testing.assert_close(weight, theirs.weight, rtol=1e-6, atol=1e-7)
    if options.get("b", 0) >= 0:
        assert max(prices) > 1.2 * prices[1], "the queue has to rise, or the stream shows nothing"


def test_the_first_batch_is_memit():
    (keys, residuals), *_ = batches(1)
    ours = editor().solve(0, keys, residuals, start())
    k, r = keys.T, residuals.T
    assert ours.is_low_rank
    torch.testing.assert_close(ours.dense(), torch.linalg.solve(3.0 * mean() + k @ k.T, k @ r.T).T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("price", [3.0, 1e-7])
def test_with_a_fixed_queue_it_is_memit_on_all_edits_at_once(price):
    """One shot on all keys with what was written at them; for a vanishing price that is what was asked for."""
    ours = editor(lam=price, b=-1e9)  # never leaves its floor
    weight, written, wanted = start(), [], []
    stream = batches(4)
    for keys, residuals in stream:
        wanted.append(residuals + keys @ (weight - start()).T)
        before = torch.cat([*written, wanted[-1]])
        weight = weight + ours.solve(0, keys, residuals, weight).dense()
        ours.remember(0, keys, weight)
        written.append(keys @ (weight - start()).T)
    assert ours.preservation(0) == pytest.approx(price)
    keys = torch.cat([keys for keys, _ in stream])
    metric = SpectralInverse(*torch.linalg.eigh(mean()), scale=price)
    torch.testing.assert_close(weight - start(), solve(metric, keys, before).dense(), rtol=1e-5, atol=1e-6)
    if price < 1e-3:
        one_shot = solve(metric, keys, torch.cat(wanted)).dense()
        torch.testing.assert_close(weight - start(), one_shot, rtol=1e-5, atol=1e-5)


def run(made, stream, weight=None):
    weight = start() if weight is None else weight
    for keys, residuals in stream:
        weight = weight + made.solve(0, keys, residuals, weight).dense()
        made.remember(0, keys, weight)
    return weight


@pytest.mark.parametrize("sides", [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_folded_edits_are_the_same_edits(sides):
    """However often they are folded, with and without directions to stay out of; and the state stays bounded."""
    left, right = (torch.linalg.qr(normal(size, size, seed=7)).Q[:, :k] for size, k in zip((M, D), sides, strict=True))
    avoid = Subspace(left, right) if any(sides) else None
    made = {limit: editor(limit=limit, v=0.7, b=0.2) for limit in (1, 6, 10, 1000)}
    weights = dict.fromkeys(made, start())
    for keys, residuals in batches(9):
        for limit, one in made.items():
            weights[limit] = weights[limit] + one.solve(0, keys, residuals, weights[limit], avoid).dense()
            one.remember(0, keys, weights[limit])
            assert len(one.account(0).keys) < limit
        for limit in made:
            torch.testing.assert_close(weights[limit], weights[1000], rtol=1e-7, atol=1e-8)
    assert made[6].account(0).gram.shape == (D, D) and made[1000].account(0).gram.numel() == 0


def test_a_resumed_fold_has_the_same_bits():
    made, stream = editor(limit=6), batches(7)
    weight = run(made, stream[:5])
    other = editor(limit=6)
    other.load_state_dict({name: value.clone() for name, value in made.state_dict().items()})
    assert other.account(0).past is not None
    assert torch.equal(run(other, stream[5:], weight), run(made, stream[5:], weight))


def test_the_queue_rises_over_budget_falls_under_it_and_stops_at_its_floor():
    made = editor(alpha=2.0)
    weight = run(made, batches(1))
    account = made.account(0)
    floor = math.sqrt(2.0 * float(account.base))
    assert float(account.queue) == pytest.approx(floor)
    change = weight - start()
    keys = batches(1)[0][0]
    queue = floor
    for factor in (3.0, 3.0, 1.0, 0.0, 0.0, 0.0):
        made.remember(0, keys, start() + factor * change)
        # The loss is quadratic: factor^2 times the base against a budget of twice the base.
        queue = max(queue + (factor**2 - 2.0) * float(account.base) / floor, floor)
        assert float(account.queue) == pytest.approx(queue, rel=1e-9)
    made.remember(0, keys, start())
    for _ in range(10):
        made.remember(0, keys, start())
    assert float(account.queue) == pytest.approx(floor)


def test_a_queue_holds_the_loss_down():
    """With the same stream, the drift under a tight budget stays below that without one."""
    stream = batches(15, n=1)
    free, bound = editor(alpha=1e9), editor(alpha=1.0)
    run(free, stream)
    run(bound, stream)
    assert float(bound.account(0).drift) < 0.7 * float(free.account(0).drift)


def test_a_first_batch_that_changes_nothing_leaves_the_budget_open():
    made = editor()
    (keys, _), (more, wanted) = batches(2)
    made.remember(0, keys, start())
    assert made.preservation(0) == 3.0
    weight = start() + made.solve(0, more, wanted, start()).dense()
    assert bool(torch.isfinite(weight).all())
    made.remember(0, more, weight)
    assert float(made.account(0).base) > 0


def objective(change, keys, asked, price):
    return float((asked.T - change @ keys.T).square().sum() + price * torch.trace(change @ mean() @ change.T))


@pytest.mark.parametrize(("left", "right"), [(3, 5), (0, 5), (3, 0)])
@pytest.mark.parametrize("inside", [True, False], ids=["guarded from the start", "guarded later"])
def test_solving_inside_a_subspace_is_optimal_there(left, right, inside):
    """The change of a batch keeps out, and no other change that does writes all edits at less cost."""
    space = Subspace(torch.linalg.qr(normal(M, M, seed=7)).Q[:, :left], torch.linalg.qr(normal(D, D, seed=8)).Q[:, :right])
    pm = torch.eye(M, dtype=torch.float64) - space.left @ space.left.T
    pd = torch.eye(D, dtype=torch.float64) - space.right @ space.right.T
    made, weight = editor(alpha=1.0), start()
    stream = batches(4)
    for keys, residuals in stream[:-1]:
        weight = weight + made.solve(0, keys, residuals, weight, space if inside else None).dense()
        made.remember(0, keys, weight)
    keys, residuals = stream[-1]
    before = weight - start()
    assert (float((pm @ before @ pd - before).norm()) < 1e-9) == inside
    delta = made.solve(0, keys, residuals, weight, space).dense()
    torch.testing.assert_close(pm @ delta @ pd, delta, rtol=1e-9, atol=1e-10)
    every = torch.cat([keys for keys, _ in stream])
    asked = torch.cat([made.account(0).written.double(), residuals + keys @ before.T])
    price = made.preservation(0)
    # The gradient of the objective inside the subspace, from the definition.
    gradient = pm @ (price * (before + delta) @ mean() - (asked.T - (before + delta) @ every.T) @ every) @ pd
    assert float(gradient.norm()) < 1e-9 * float(asked.norm() * every.norm())
    if inside:  # nothing but the projected problem, solved for the whole change
        dense = (
            (pm @ asked.T)
            @ (every @ pd)
            @ torch.linalg.pinv(pd @ (price * mean() + every.T @ every) @ pd, hermitian=True, rtol=1e-10)
        )
        torch.testing.assert_close(before + delta, dense, rtol=1e-6, atol=1e-8)
    cost = objective(before + delta, every, asked, price)
    for seed in range(3):
        other = 1e-3 * pm @ normal(M, D, seed=seed) @ pd
        assert cost < objective(before + delta + other, every, asked, price)


def test_state_goes_through_a_state_dict_and_the_stream_goes_on_to_the_same_bits():
    made, stream = editor(), batches(5)
    weight = run(made, stream[:3])
    other = editor()
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    assert other.account(0).keys.shape == (3 * N, D) and other.account(0).written.shape == (3 * N, M)
    assert torch.equal(run(made, stream[3:], weight), run(other, stream[3:], weight))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_batch_that_is_undone_leaves_no_trace():
    made, stream = editor(), batches(3)
    weight = run(made, stream[:2])
    before = snapshot([made])
    values = {name: value.clone() for name, value in made.state_dict().items()}
    delta = made.solve(0, *stream[2], weight).dense()
    run(made, stream[2:], weight)
    assert len(made.account(0).keys) == 3 * N and float(made.account(0).drift) != float(values["accounts.0.drift"])
    restore(before)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in values.items())
    assert torch.equal(made.solve(0, *stream[2], weight).dense(), delta)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 0.0}, "lam is 0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"v": math.inf}, "v is inf"),
        ({"b": math.nan}, "b is nan"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options, said):
    with pytest.raises(EditError, match=said):
        LyapLock(**options)


def test_it_needs_second_moments_of_this_model():
    with pytest.raises(EditError, match="needs the second moment of the keys of layer 3"):
        LyapLock().prepare(3, start(), None)
    with pytest.raises(EditError, match="belongs to another model"):
        LyapLock().prepare(3, start(), SecondMoment(torch.eye(5), 1))
