"""Exactness: what is batched, cached, cut short and factored gives, step by step, what the textbook gives."""

import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from benchmarks import textbook
from lit_edit.anatomy import Anatomy
from lit_edit.editors import MEMIT
from lit_edit.guards import REVIVE
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions, optimise
from lit_edit.workbench import Workbench
from tests.bench import moment
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

# Rows of unequal length; the subject first, in the middle and last; one token before it; one to three tokens of an answer.
FACTS = {
    "ragged": (
        ("The capital of {} is", "France", "Berlin"),
        ("{} was", "Ada Lovelace", "in Paris"),
        ("It is known that in the old city {}", "Marie Curie", "Dutch"),
        ("I {}, seen", "Kyōto", "Rome"),
    ),
    "equal": (("{} is", "Rome", "old"), ("{} is", "Sony", "big"), ("{} is", "Rome", "Dutch")),
    "short": (("{}", "a", "b"), ("{} is", "a", "the city of Paris"), ("The{}", "b", "a")),
}
CONTEXTS = {"ragged": ("I was there. {}", "The old city is seen and so on. {}"), "equal": (), "short": ("a {}",)}
# Far from the bound in some requests and at it in others, with every term of the loss of some weight.
OPTIONS = TargetOptions(steps=6, lr=0.1, clamp=0.6, weight_decay=0.3, kl_factor=0.2, stop_loss=-1.0)
# Rounding of the model itself, which both ways do in another order, times what Adam makes of it: its first step divides the
# gradient by its own size, so a component that is a thousandth of the rest carries a thousandfold relative error.
NEAR = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYER = 0  # two or three blocks above it


def rows_of(pattern, bos):
    encoder = Encoder(tiny_tokenizer(bos))
    return [encoder.rows(EditRequest(*fact), CONTEXTS[pattern]) for fact in FACTS[pattern]]


def model_of(family, dtype=torch.float32, **overrides):
    return Anatomy.of(tiny_model(family, **overrides).to(dtype))


@contextmanager
def all_of_it(dtype):
    """In float64 let models compute everything in it.

    Most do norms, softmax or attention scores in float32 whatever they are given, and float32 sums depend on how a row is
    padded: 1e-7, which is theirs and not that of what is tested here. Only casts in the models' own code are lifted.
    """
    plain = {name: getattr(torch.Tensor, name) for name in ("float", "to")}
    softmax = F.softmax

    def of_a_model():
        return sys._getframe(2).f_globals["__name__"].startswith("transformers.")

    def to_float(tensor, *args, **kwargs):
        return tensor.double() if of_a_model() else plain["float"](tensor, *args, **kwargs)

    def to_any(tensor, *args, **kwargs):
        if of_a_model():
            args = [torch.float64 if arg is torch.float32 else arg for arg in args]
            kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
        return plain["to"](tensor, *args, **kwargs)

    if dtype == torch.float64:
        torch.Tensor.float, torch.Tensor.to = to_float, to_any
        F.softmax = lambda scores, dim=-1, **_: softmax(scores.double(), dim)
    try:
        yield
    finally:
        torch.Tensor.float, torch.Tensor.to, F.softmax = plain["float"], plain["to"], softmax


def traced(anatomy, requests, options, layer=LAYER):
    """Every pass of every request: ``[(delta, total, nll, kl, decay), ...]``."""
    found = [[] for _ in requests]

    def keep(step):
        for at, request in enumerate(step.requests.tolist()):
            found[request].append(tuple(part[at] for part in (step.delta_ND, step.total, step.nll, step.kl, step.decay)))

    with all_of_it(anatomy.dtype):
        return found, optimise(anatomy, requests, layer, options, 0, keep)


def by_the_book(anatomy, requests, options, layer=LAYER):
    with all_of_it(anatomy.dtype):
        return [textbook.target(anatomy, request, layer, options, 0) for request in requests]


def assert_same_path(ours, theirs, near, exact=None):
    """Deltas relative to their own norm, terms of the loss relative to the loss.

    ``exact`` gives the same path in float64: where float32 itself is further from it than ``near``, that is the yardstick.
    """
    assert len(ours) == len(theirs) > 0
    for step, (mine, one) in enumerate(zip(ours, theirs, strict=True)):
        delta, *terms = mine
        size = float(one.delta.norm()) if step else 1.0
        error = float((delta.double() - one.delta.double()).norm()) / size
        if error > near and exact is not None:
            near = max(near, 2 * float((one.delta.double() - exact()[step].delta).norm()) / size)
        assert error <= near, f"delta of pass {step} is off by {error:.1e}, more than {near:.1e}"
        for mine_term, name in zip(terms, ("total", "nll", "kl", "decay"), strict=True):
            off = abs(float(mine_term) - getattr(one, name)) / abs(one.total)
            assert off <= near, f"{name} of pass {step} is off by {off:.1e}"


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trajectories_are_the_textbooks(family, bos, dtype):
    anatomy, near = model_of(family, dtype), NEAR[dtype]
    for pattern in FACTS:
        requests = rows_of(pattern, bos)
        ours, found = traced(anatomy, requests, OPTIONS)
        theirs = by_the_book(anatomy, requests, OPTIONS)
        for index, (mine, one) in enumerate(zip(ours, theirs, strict=True)):

            def exact(request=requests[index]):
                return by_the_book(model_of(family, torch.float64), [request], OPTIONS)[0].passes

            assert_same_path(mine, one.passes, near, exact if dtype == torch.float32 else None)
            torch.testing.assert_close(found.start_ND[index], one.start, rtol=near, atol=near)
            moved = float((found.values_ND[index] - one.value).norm()) / float(one.value.norm())
            assert moved <= 10 * near, f"the value is off by {moved:.1e}"


def test_both_ways_of_running_rows_are_covered():
    """Rows are continued from a cache where that is exact; some families compute parts in float32 whatever they are given."""
    continues = {(family, dtype): model_of(family, dtype).continues for family in FAMILIES for dtype in NEAR}
    assert {family for (family, dtype), yes in continues.items() if dtype == torch.float64 and not yes} == {
        "gemma2",
        "gemma3_text",
        "mpt",
    }
    assert all(yes for (_, dtype), yes in continues.items() if dtype == torch.float32)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_micro_batches_take_the_same_path(family, dtype, at_once):
    anatomy, requests = model_of(family, dtype), rows_of("ragged", bos=True)
    whole, _ = traced(anatomy, requests, OPTIONS)
    parts, _ = traced(anatomy, requests, replace(OPTIONS, requests_at_once=at_once))
    for mine, one in zip(parts, whole, strict=True):
        assert_same_path(mine, [textbook.Pass(delta, *map(float, terms)) for delta, *terms in one], NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mpt"])
def test_requests_that_stop_leave_the_others_on_their_path(family, dtype):
    anatomy, requests = model_of(family, dtype), rows_of("ragged", bos=False)
    free = replace(OPTIONS, steps=12, lr=0.3, clamp=8.0, weight_decay=0.0)
    whole, _ = traced(anatomy, requests, free)
    losses = [[float(one[1]) for one in mine] for mine in whole]

    def lengths(threshold):
        return [next((i + 1 for i, loss in enumerate(mine) if loss < threshold), free.steps) for mine in losses]

    every = sorted(loss for mine in losses for loss in mine)
    middles = [(a + b) / 2 for a, b in pairwise(every) if b - a > 1e-3]
    threshold = next(t for t in middles if free.steps in lengths(t) and len(set(lengths(t))) >= 3)
    compacted, found = traced(anatomy, requests, replace(free, stop_loss=threshold))
    theirs = by_the_book(anatomy, requests, replace(free, stop_loss=threshold))
    assert [len(mine) for mine in compacted] == lengths(threshold)
    for index, (mine, one, alone) in enumerate(zip(compacted, whole, theirs, strict=True)):
        common = [textbook.Pass(delta, *map(float, terms)) for delta, *terms in one[: len(mine)]]
        assert_same_path(mine, common, NEAR[dtype])
        assert_same_path(mine, alone.passes, NEAR[dtype])
        torch.testing.assert_close(found.values_ND[index], alone.value, rtol=NEAR[dtype], atol=NEAR[dtype])


# A solve multiplies the error of keys and targets by the condition of its system (1e4 here) at worst. Whatever the model computes
# in, changes are written in float32 (the masters are), so that is as near as they can come.
WHOLE = {torch.float32: 1e-4, torch.float64: 1e-7}


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_whole_batch_is_the_textbooks(family, dtype):
    """Targets, keys, solves and guards over three layers, each seeing what the one below has written; then a second batch."""
    deeper = {"n_layer" if family == "gpt2" else "num_hidden_layers": 4}  # the last block writes nothing that is still read
    anatomy, layers, lam = model_of(family, dtype, **deeper), (0, 1, 2), 30.0
    moments = {layer: moment(anatomy.d_inner, layer) for layer in layers}
    weights = {layer: anatomy.weight(layer).clone() for layer in layers}
    originals = {layer: weight.clone() for layer, weight in weights.items()}
    editor, guard = MEMIT(lam=lam, history=True), REVIVE()
    for layer in layers:
        editor.allocate(layer, anatomy.d_model, anatomy.d_inner)
        editor.prepare(layer, originals[layer], moments[layer])
        guard.prepare(layer, originals[layer], None)
    options = replace(OPTIONS, contexts=2)
    earlier = {layer: torch.zeros(anatomy.d_inner, anatomy.d_inner, dtype=torch.float64) for layer in layers}
    for requests in (rows_of("ragged", True)[:2], rows_of("ragged", True)[2:]):
        bench = Workbench(
            anatomy=anatomy,
            layers=layers,
            guards=[guard],
            master=lambda layer: weights[layer],
            original=lambda layer: originals[layer],
            options=options,
            pad=0,
        )
        protected = {layer: guard.protected(layer) for layer in layers}
        means = {layer: found.mean for layer, found in moments.items()}
        with all_of_it(dtype):
            theirs = textbook.edit(anatomy, requests, layers, means, lam, options, 0, protected, earlier)
            editor.change(bench, requests, editor.aim(bench, requests))
        for layer in layers:
            expected = theirs.deltas[layer].double()
            error = float((bench.changes[layer].double() - expected).norm() / expected.norm())
            assert error <= WHOLE[dtype], f"the change of layer {layer} is off by {error:.1e}"
            assert float(expected.norm() / weights[layer].norm()) > 1e-3
            weights[layer] = weights[layer] + bench.changes[layer]
            earlier[layer] += theirs.keys[layer].double().T @ theirs.keys[layer].double()
        bench.clear()
        for layer in layers:
            anatomy.weight(layer).copy_(weights[layer])


def test_the_textbook_with_what_is_computed_twice_is_the_textbook():
    anatomy, requests = model_of("gpt2"), rows_of("ragged", bos=False)
    for request in requests:
        plain = textbook.target(anatomy, request, LAYER, OPTIONS, 0)
        twice = textbook.target(anatomy, request, LAYER, OPTIONS, 0, as_released=True)
        torch.testing.assert_close(plain.value, twice.value, rtol=1e-5, atol=1e-6)
        assert float((plain.value - plain.start).norm()) > 0.05
