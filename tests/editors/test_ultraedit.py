"""UltraEdit: the thin solve is the dense formula, and the normaliser is its own formula however it was fed."""

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.batch.state import restore, snapshot
from lit_edit.editors.ultraedit import Normaliser, UltraEdit
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE
from lit_edit.passes.gradients import capture
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.spectrum import Subspace
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Rejected, Workbench
from tests.tiny import normal, tiny_model, tiny_tokenizer

I, O = 24, 10  # noqa: E741
FACTS = (
    EditRequest("{} is", "Zürich", "old"),
    EditRequest("The capital of {} is", "France", "Berlin"),
    EditRequest("It is known that her mother tongue is", "", "Dutch and so on"),
    EditRequest("{} was created by", "Sony", "Rome"),
    EditRequest("Cities are", "", "seen"),
)


def close(a, b, rtol=0.0, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def ready(**options):
    made = UltraEdit(**options)
    made.allocate(0, O, I)
    return made


def tokens(count=7, seed=0):
    return normal(count, I, seed=seed) + 0.3, 0.01 * normal(count, O, seed=seed + 50)


def released(x, g, mean, std, lr, ridge):
    """The published formula, dense."""
    eps = torch.finfo(torch.float32).eps
    z = (torch.cat([x, g], 1) - mean) / (std + eps)
    v = -lr * z[:, :I].square().sum(1)[:, None] * z[:, I:]
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(I, dtype=torch.float64), x.T @ v).T


# ---------------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(("lr", "ridge"), [(1e-6, 1.0), (0.5, 0.01), (1e-3, 30.0)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_thin_solve_is_the_dense_formula(lr, ridge, count):
    made = ready(lr=lr, ridge=ridge)
    earlier, now = tokens(12, seed=3), tokens(count)
    for x, g in (earlier, now):
        made.normaliser(0).update(torch.cat([x, g], 1))
    delta = made.solve(0, *now)
    assert delta.is_low_rank and delta.shape == (O, I) and delta.factors[0].shape[1] == count
    expected = released(*now, made.normaliser(0).mean, made.normaliser(0).std, lr, ridge)
    assert float(expected.norm()) > 0
    close(delta.dense(), expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_directions_to_be_avoided_leave_the_problem():
    made = ready(lr=0.1)
    x, g = tokens(9)
    made.normaliser(0).update(torch.cat([x, g], 1))
    avoid = Subspace(torch.linalg.qr(normal(O, 3, seed=8)).Q, torch.linalg.qr(normal(I, 4, seed=9)).Q)
    delta = made.solve(0, x, g, avoid).dense()
    close(avoid.left.T @ delta, torch.zeros(3, I, dtype=torch.float64))
    close(delta @ avoid.right, torch.zeros(O, 4, dtype=torch.float64))
    # Ridge regression with inputs and values that lack these directions.
    pi_d, pi_m = (torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T for basis in (avoid.right, avoid.left))
    z = made.normaliser(0)(torch.cat([x, g], 1))
    v = -0.1 * z[:, :I].square().sum(1)[:, None] * z[:, I:] @ pi_m
    inside = x @ pi_d
    close(delta, torch.linalg.solve(inside.T @ inside + torch.eye(I, dtype=torch.float64), inside.T @ v).T, atol=1e-10)
    assert float((delta - made.solve(0, x, g).dense()).norm()) > 1e-3


@pytest.mark.parametrize("sizes", [(30,), (10, 10, 10), (2, 21, 7), (1, 28, 1), (5, 1, 24)])
def test_streamed_statistics_are_those_of_the_formula(sizes):
    everything = normal(30, 6) * torch.tensor([1, 10, 0.1, 1, 1, 1]) + 5
    normaliser = Normaliser(6)
    for part in everything.split(sizes):
        normaliser.update(part)
    mean = everything.mean(0)
    within = sum(len(part) * part.var(0) for part in everything.split(sizes) if len(part) > 1)
    between = sum(len(part) * (part.mean(0) - mean).square() for part in everything.split(sizes))
    assert float(normaliser.count) == 30
    close(normaliser.mean, mean)
    close(normaliser.std, ((within + between) / 29).sqrt(), rtol=1e-7)
    if sizes == (30,):
        close(normaliser.std, everything.std(0) * (30 / 29) ** 0.5, rtol=1e-7)


def test_a_feature_that_never_moves_is_zero_not_infinite():
    normaliser = Normaliser(3)
    constant = normal(5, 3)
    constant[:, 1] = 0.1
    normaliser.update(constant)
    normaliser.update(constant[:1])
    close(normaliser(constant)[:, 1], torch.zeros(5, dtype=torch.float64), atol=1e-6)
    assert bool(torch.isfinite(normaliser(constant)).all())
    alone = Normaliser(3)
    alone.update(constant[:1])
    assert bool((alone(constant[:1]) == 0).all()), "one token says nothing of a deviation"


# ------------------------------------------------------------------------------------------------------------------- state


def test_state_survives_a_state_dict():
    made, other = ready(lr=0.1), ready(lr=0.1)
    x, g = tokens()
    made.normaliser(0).update(torch.cat([x, g], 1))
    stored = {name: value.clone() for name, value in made.state_dict().items()}
    assert sorted(stored) == [f"normalisers.{O}x{I}.{name}" for name in ("count", "mean", "squares")]
    other.load_state_dict(stored)
    for one in (made, other):
        one.normaliser(0).update(torch.cat(tokens(5, seed=1), 1))
    assert torch.equal(made.solve(0, x, g).dense(), other.solve(0, x, g).dense())


def test_state_is_replaced_so_that_it_can_be_taken_back():
    made = ready()
    made.normaliser(0).update(torch.cat(tokens(), 1))
    before, values = snapshot([made]), {name: value.clone() for name, value in made.state_dict().items()}
    made.normaliser(0).update(torch.cat(tokens(seed=4), 1))
    assert float(made.normaliser(0).count) == 14
    restore(before)
    for name, value in made.state_dict().items():
        assert torch.equal(value, values[name])


def test_layers_of_one_shape_share_a_normaliser_and_a_new_run_starts_from_nothing():
    made = ready()
    made.allocate(1, O, I)
    made.allocate(2, O, 2 * I)
    assert made.normaliser(0) is made.normaliser(1) is not made.normaliser(2)
    made.normaliser(1).update(torch.cat(tokens(), 1))
    made.allocate(0, O, I)
    made.allocate(1, O, I)
    assert float(made.normaliser(1).count) == 0 and made.normaliser(0) is made.normaliser(1)


# --------------------------------------------------------------------------------------------------------------- the model


def bench_of(anatomy, layers, guards=()):
    masters = {layer: anatomy.weight(layer).float().clone() for layer in layers}
    for guard in guards:
        for layer in layers:
            guard.prepare(layer, masters[layer], None)
    return Workbench(anatomy, layers, guards, masters.__getitem__, masters.__getitem__, TargetOptions(), 0)


def allocated(anatomy, layers, **options):
    made = UltraEdit(**options)
    for layer in layers:
        made.allocate(layer, anatomy.d_model, anatomy.d_inner)
    return made


def rows_of(made, facts=FACTS):
    encoder = Encoder(tiny_tokenizer())
    return [made.rows(encoder, fact, ("unused {}",)) for fact in facts]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_batch_is_the_published_algorithm(family):
    anatomy, layers = Anatomy.of(tiny_model(family)), (0, 1)
    made = allocated(anatomy, layers, lr=0.01, minibatch=2)
    before = {layer: anatomy.weight(layer).clone() for layer in layers}
    rows = rows_of(made)
    # By hand: all layers on the weights before the batch, longest rows first, statistics before anything is normalised.
    longest = sorted((row.rewriting[0] for row in rows), key=lambda row: -len(row.ids))
    portions = [longest[:2], longest[2:4], longest[4:]]
    found = [capture(anatomy, portion, layers, 0, answers_only=True) for portion in portions]
    statistics = Normaliser(anatomy.d_inner + anatomy.d_model)
    for captured, _ in found:
        for layer in layers:
            statistics.update(torch.cat([captured[layer].inputs_TI, captured[layer].gradients_TO], 1))
    bench = bench_of(anatomy, layers)
    made.change(bench, rows, None)
    bench.finish()
    assert bench.scalars["ultraedit/loss"] == pytest.approx(sum(loss for _, loss in found) / 3)
    for layer in layers:
        x = torch.cat([captured[layer].inputs_TI for captured, _ in found]).double()
        g = torch.cat([captured[layer].gradients_TO for captured, _ in found]).double()
        eps = torch.finfo(torch.float32).eps
        z = (torch.cat([x, g], 1) - statistics.mean) / (statistics.std + eps)
        v = -0.01 * z[:, : x.shape[1]].square().sum(1)[:, None] * z[:, x.shape[1] :]
        expected = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]).double(), x.T @ v).T
        assert float(expected.norm()) > 1e-3
        close(bench.changes[layer].double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
        close(anatomy.weight(layer), before[layer] + bench.changes[layer])
    bench.clear()
    for layer in layers:
        assert torch.equal(anatomy.weight(layer), before[layer])


def test_a_small_step_lowers_the_loss():
    anatomy, layers = Anatomy.of(tiny_model("llama")), (0, 1)
    made = allocated(anatomy, layers, lr=1e-4)
    rows = [row.rewriting[0] for row in rows_of(made)]
    before = capture(anatomy, rows, layers, 0, answers_only=True)[1]
    bench = bench_of(anatomy, layers)
    made.change(bench, rows_of(made), None)
    assert capture(anatomy, rows, layers, 0, answers_only=True)[1] < before


@pytest.mark.parametrize("mode", ["project", "constrain"])
def test_protected_directions_stay(mode):
    anatomy, layers = Anatomy.of(tiny_model("gpt2")), (1,)
    made, guard = allocated(anatomy, layers, lr=0.1), REVIVE(mode=mode)
    bench = bench_of(anatomy, layers, [guard])
    made.change(bench, rows_of(made), None)
    bench.finish()
    kept, change = guard.protected(1), bench.changes[1]
    assert float(change.norm()) > 1e-3
    assert float((kept.left.T @ change).norm() + (change @ kept.right).norm()) < 1e-5 * float(change.norm())


def test_gradients_that_are_not_finite_are_rejected_before_they_count():
    anatomy, layers = Anatomy.of(tiny_model("llama")), (0, 1)
    made = allocated(anatomy, layers)
    anatomy.weight(2).fill_(float("inf"))
    with pytest.raises(Rejected, match="layer 0 are not finite"):
        made.change(bench_of(anatomy, layers), rows_of(made), None)
    assert float(made.normaliser(0).count) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"ridge": -1.0}, "ridge is -1"),
        ({"minibatch": 0}, "minibatch is 0"),
        ({"lr": float("nan")}, "nan"),
    ],
)
def test_bad_values_are_refused(options, sentence):
    with pytest.raises(EditError, match=sentence):
        UltraEdit(**options)
