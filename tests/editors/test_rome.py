"""ROME, R-ROME and p-ROME: what is written where, alone and request after request through a model."""

from pathlib import Path

import pytest
import torch
import yaml
from rome_parts import VARIANTS, D, M, Spoil, moment, prepared

from lit_edit.algebra.inverses import SpectralInverse
from lit_edit.anatomy import Anatomy
from lit_edit.delta import remove_columns
from lit_edit.editors.rome import ROME, added, missing
from lit_edit.errors import EditError
from lit_edit.passes.forward import reading
from lit_edit.passes.gradients import Answers
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.solver import Within, solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench
from tests.tiny import normal, tiny_model, tiny_tokenizer


def problem(seed=0):
    """Key, key for the direction, residual; the two keys differ, as a bare and an averaged one do."""
    key = normal(1, D, seed=seed + 10)
    return key, key + 0.3 * normal(1, D, seed=seed + 20), normal(1, M, seed=seed + 30)


def basis(d, k, seed):
    return torch.linalg.qr(normal(d, k, seed=seed)).Q


# ------------------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_key_writes_exactly_what_is_missing_with_rank_one_along_the_direction_of_the_other_key(seed, adjust):
    key, toward, residual = problem(seed)
    delta = prepared(adjust=adjust).solve(0, key, residual, None, None, toward)
    left, right = delta.factors
    assert left.shape == (M, 1) and right.shape == (1, D) and left.dtype == right.dtype == torch.float64
    torch.testing.assert_close(delta.dense() @ key.T, residual.T, rtol=1e-10, atol=1e-11)
    u = torch.linalg.solve(moment().mean.double(), toward.T) if adjust else toward.T
    torch.testing.assert_close(right.T, u / u.norm(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_one_key_in_both_places_is_the_least_squares_solver_without_slack(seed):
    key, _, residual = problem(seed)
    expected = solve(SpectralInverse(*moment().eigen(), scale=1.0), key, residual, mu=0.0).dense()
    torch.testing.assert_close(prepared().solve(0, key, residual, None).dense(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_constrained_it_stays_out_of_the_avoided_directions_and_writes_the_rest_exactly(seed):
    key, toward, residual = problem(seed)
    avoid = Subspace(basis(M, 3, seed + 1), basis(D, 5, seed + 2))
    delta = prepared().solve(0, key, residual, None, avoid, toward).dense()
    assert float((avoid.left.T @ delta).norm()) < 1e-12 * float(delta.norm())
    assert float((delta @ avoid.right).norm()) < 1e-12 * float(delta.norm())
    torch.testing.assert_close(delta @ key.T, remove_columns(residual.T, avoid.left), rtol=1e-9, atol=1e-10)
    same = prepared().solve(0, key, residual, None, avoid).dense()
    inside, wanted = remove_columns(key.T, avoid.right).T, remove_columns(residual.T, avoid.left).T
    inverse = Within(SpectralInverse(*moment().eigen(), scale=1.0), avoid.right)
    torch.testing.assert_close(same, solve(inverse, inside, wanted, mu=0.0).dense(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("side", ["left", "right"])
def test_constrained_on_one_side_alone(side):
    key, toward, residual = problem()
    nothing = {"left": torch.zeros(M, 0), "right": torch.zeros(D, 0)}
    avoid = Subspace(**{**nothing, side: basis({"left": M, "right": D}[side], 3, 1)})
    delta = prepared().solve(0, key, residual, None, avoid, toward).dense()
    torch.testing.assert_close(delta @ key.T, remove_columns(residual.T, avoid.left.double()), rtol=1e-9, atol=1e-10)
    assert float((delta @ avoid.right.double()).norm()) < 1e-12 * float(delta.norm())


def test_a_key_across_its_direction_is_refused_instead_of_exploding():
    key, toward, residual = problem()
    across = key - key @ toward.T * toward / toward.square().sum()
    plain = prepared(adjust=False)
    with pytest.raises(EditError, match="almost no part"):
        plain.solve(0, across, residual, None, None, toward)
    assert plain.solve(0, across + 1e-3 * toward, residual, None, None, toward).is_finite()
    inside = Subspace(torch.zeros(M, 0), torch.linalg.qr(torch.cat([key.T, normal(D, 2)], 1)).Q)
    with pytest.raises(EditError, match="almost no part"):
        prepared().solve(0, key, residual, None, inside)
    with pytest.raises(EditError, match="almost no part"):
        prepared().solve(0, 0 * key, residual, None)


def test_what_cannot_be_worked_with_is_refused_in_one_sentence():
    with pytest.raises(EditError, match="same_key and prompt_key"):
        ROME(same_key=True, prompt_key=True)
    with pytest.raises(EditError, match="one request at a time"):
        prepared().solve(0, normal(2, D), normal(2, M), None)
    with pytest.raises(EditError, match="ROME needs the second moment"):
        ROME().prepare(3, torch.zeros(M, D), None)
    rome = prepared(layer=3)
    rome.allocate(3, M, D)
    with pytest.raises(EditError, match="one layer, but layers 3 and 4"):
        rome.allocate(4, M, D)
    assert ROME().needs_moments and not ROME(adjust=False).needs_moments


def test_fragments_are_the_published_variants():
    root = Path(__file__).parents[2] / "configs" / "editors"
    made = {name: ROME(**yaml.safe_load((root / f"{name}.yaml").read_text())["init_args"]) for name in ("rome", "rrome")}
    assert [(made[name].adjust, made[name].same_key, made[name].prompt_key) for name in ("rome", "rrome")] == [
        (True, False, False),
        (True, True, False),
    ]


# --------------------------------------------------------------------------------------------------------- through a model

CONTEXTS = ("I was there. {}", "The old city is seen and so on. {}", "She was born in Rome. {}")
FACTS = (
    ("The capital of {} is", "France", "Berlin"),
    ("{} was created by", "Ada Lovelace", "Sony in Paris"),
    ("It is known that {}'s mother tongue is", "Marie Curie", "Dutch"),
)
ENDS = ("She was seen in {}", "Vienna", "Rome")
"""The answer follows the subject at once: a random model hardly passes on what stands further back."""
FAMILIES = ("gpt2", "gptj", "llama", "gemma2", "opt")


def rows_of(facts=FACTS):
    encoder = Encoder(tiny_tokenizer(bos=True))
    return [encoder.rows(EditRequest(*fact), CONTEXTS) for fact in facts]


def bench_of(anatomy, layer=1, guards=(), stateful=(), **options):
    """A workbench on one layer of a bare model."""
    original = anatomy.weight(layer).clone()
    targets = TargetOptions(**{"steps": 6, "clamp": 4.0, "stop_loss": 1e-6, **options})
    return Workbench(anatomy, (layer,), guards, lambda _: original, lambda _: original, targets, 0, stateful=stateful)


@torch.no_grad()
def outputs(anatomy, row, layer, module=None):
    """Output of a module at the subject, one plain forward pass per row, ``[rows, hidden]``."""
    found = []
    for part in row.rewriting:
        kept = []
        with reading(anatomy.down(layer) if module is None else module, None, kept.append):
            anatomy.model(torch.tensor([part.ids]), use_cache=False)
        found.append(kept[0].reshape(len(part.ids), -1)[part.subject])
    return torch.stack(found)


def loss(anatomy, rows):
    with torch.no_grad():
        return float(Answers.of([part for row in rows for part in row.rewriting], 0, anatomy.device).losses(anatomy).mean())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_puts_out_the_target_at_the_key_it_was_solved_for(family, variant):
    anatomy = Anatomy.of(tiny_model(family))
    bench, (row,) = bench_of(anatomy, steps=12, weight_decay=0.0, kl_factor=0.0), rows_of((ENDS,))
    rome = prepared(anatomy.d_inner, anatomy.d_model, 1, **VARIANTS[variant])
    before, worse = outputs(anatomy, row, 1), loss(anatomy, [row])
    rome.change(bench, [row], rome.aim(bench, [row]))
    (found,) = bench.losses
    assert not bench.refused and torch.linalg.matrix_rank(bench.changes[1].double(), rtol=1e-5) == 1
    wanted = anatomy.pull_back(1, before[:1], found.values_ND - found.start_ND)[0]
    assert float(wanted.norm()) > 0.1, "a change of nothing would show nothing"
    after = outputs(anatomy, row, 1)
    if variant == "rrome":
        # The averaged output becomes the *bare* one plus the change, as published.
        torch.testing.assert_close(after.mean(0), before[0] + wanted, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(after[0], before[0] + wanted, rtol=1e-3, atol=1e-3)
    assert loss(anatomy, [row]) < worse - 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_count_from_what_the_mlp_adds(family):
    anatomy = Anatomy.of(tiny_model(family))
    (row,) = rows_of(FACTS[1:2])
    after = anatomy.after_mlp_name
    module = None if after is None else anatomy.blocks[1].get_submodule(after)
    expected = outputs(anatomy, row, 1, module)[:1]
    start = prepared(anatomy.d_inner, anatomy.d_model, 1).targets(bench_of(anatomy, steps=1), [row]).start_ND
    torch.testing.assert_close(start, expected, rtol=1e-4, atol=1e-5)


def test_variants_read_the_rows_they_name_each_row_counting_the_same():
    anatomy = Anatomy.of(tiny_model("llama"))
    bench, (row,) = bench_of(anatomy), rows_of(FACTS[:1])
    inputs_NJI, outputs_NJO = bench.reader([row]).rows(1)
    seen = {name: ROME(**options).read(bench.reader([row]), 1) for name, options in VARIANTS.items()}
    mean, bare = inputs_NJI.mean(1), inputs_NJI[:, 0]
    assert not torch.allclose(mean, bare, rtol=1e-2, atol=1e-2)
    for name, (toward, key, output) in {
        "rome": (mean, bare, outputs_NJO[:, 0]),
        "rrome": (mean, mean, outputs_NJO.mean(1)),
        "prome": (bare, bare, outputs_NJO[:, 0]),
    }.items():
        assert torch.equal(seen[name].toward_NI, toward) and torch.equal(seen[name].keys_NI, key), name
        assert torch.equal(seen[name].output_NO, output) and torch.equal(seen[name].bare_NO, outputs_NJO[:, 0])
    shift = missing(anatomy, 1, seen["rrome"], added(anatomy, 1, outputs_NJO[:, 0]))
    torch.testing.assert_close(shift, outputs_NJO[:, 0] - outputs_NJO.mean(1))


def spoilt(anatomy, bad):
    rome = Spoil()
    rome.bad = bad
    rome.prepare(1, torch.zeros(anatomy.d_model, anatomy.d_inner), moment(anatomy.d_inner))
    return rome


def test_a_request_that_fails_is_refused_alone_and_leaves_nothing_behind():
    anatomy = Anatomy.of(tiny_model("llama"))
    rows, original = rows_of(), anatomy.weight(1).clone()
    whole = bench_of(anatomy)
    spoilt(anatomy, (1,)).change(whole, rows, None)
    ((row, reason),) = whole.refused
    assert row is rows[1] and "not finite" in reason
    shown = anatomy.weight(1).clone()
    whole.clear()
    assert torch.equal(anatomy.weight(1), original)
    alone = bench_of(anatomy)
    spoilt(anatomy, ()).change(alone, [rows[0], rows[2]], None)
    assert not alone.refused
    assert torch.equal(whole.changes[1], alone.changes[1]) and torch.equal(shown, anatomy.weight(1))
    assert not torch.equal(shown, original)


def test_a_key_that_the_guard_takes_away_refuses_its_request_alone(monkeypatch):
    anatomy = Anatomy.of(tiny_model("llama"))
    rows, bench = rows_of(), bench_of(anatomy)
    taken = bench.reader(rows[:1]).rows(1)[0][0].double()  # every row of the first request
    space = Subspace(torch.zeros(anatomy.d_model, 0), torch.linalg.qr(taken.T).Q)
    monkeypatch.setattr(bench, "avoid", lambda layer: space)
    spoilt(anatomy, ()).change(bench, rows, None)
    assert [row for row, _ in bench.refused] == rows[:1] and "almost no part" in bench.refused[0][1]
    assert float((bench.changes[1].double() @ space.right).norm()) < 1e-5 * float(bench.changes[1].norm())
