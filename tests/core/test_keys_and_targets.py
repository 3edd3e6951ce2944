"""Keys and target values: batched and incremental passes give what one plain pass per request gives."""

from dataclasses import replace

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.keys import KeyPass
from lit_edit.passes.forward import reading
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions, optimise
from tests.tiny import normal, tiny_model, tiny_tokenizer

CONTEXTS = ("I was there. {}", "The old city is seen and so on. {}")
FACTS = (
    ("The capital of {} is", "France", "Berlin"),
    ("{} was created by", "Ada Lovelace", "Sony in Paris"),
    ("It is known that {}'s mother tongue is", "Marie Curie", "Dutch"),
    ("{}, seen in", "Kyōto", "Rome"),
    ("{} is", "Zürich", "old"),
)
SOME = ("gpt2", "gptj", "llama", "gemma2", "gemma3_text", "mpt", "opt")


def rows_of(bos, contexts=CONTEXTS, facts=FACTS):
    encoder = Encoder(tiny_tokenizer(bos))
    return [encoder.rows(EditRequest(*fact), contexts) for fact in facts]


@pytest.fixture(params=SOME)
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


@torch.no_grad()
def plain_keys(anatomy, requests, layer):
    """One full forward per row with a hook: half the bare prompt, half the mean over contexts."""
    keys = []
    for request in requests:
        found = []
        for row in request.rewriting:
            kept = []
            with reading(anatomy.down(layer), kept.append, None):
                anatomy.model(torch.tensor([row.ids]), use_cache=False)
            found.append(kept[0].reshape(len(row.ids), -1)[row.subject])  # OPT flattens rows and positions
        keys.append(0.5 * found[0] + 0.5 * torch.stack(found[1:]).mean(0) if len(found) > 1 else found[0])
    return torch.stack(keys)


@torch.no_grad()
def plain_values(anatomy, requests, layer):
    kept = []
    with reading(anatomy.blocks[layer], None, lambda x: kept.append(x)):
        for request in requests:
            anatomy.model(torch.tensor([request.rewriting[0].ids]), use_cache=False)
    return torch.stack([x[0, request.rewriting[0].subject] for x, request in zip(kept, requests, strict=True)])


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (1, 2), (1,)])
def test_incremental_pass_is_the_plain_one_while_layers_are_edited(anatomy, layers):
    requests = rows_of(bos=True)
    at_subject = KeyPass(anatomy, requests, 0, requests_at_once=2)
    for layer in layers:
        keys = at_subject.keys(layer)
        torch.testing.assert_close(keys, plain_keys(anatomy, requests, layer), rtol=1e-5, atol=1e-5)
        last = layers[-1]
        torch.testing.assert_close(at_subject.values(last), plain_values(anatomy, requests, last), rtol=1e-5, atol=1e-5)
        bias = getattr(anatomy.down(layer), "bias", None)
        assert at_subject.written().shape == (len(requests), anatomy.d_model)
        bare = KeyPass(anatomy, rows_of(True, ()), 0).keys(layer)
        expected = bare @ anatomy.weight(layer).T + (0 if bias is None else bias)
        torch.testing.assert_close(at_subject.written(), expected, rtol=1e-4, atol=1e-5)
        anatomy.weight(layer).add_(0.3 * normal(anatomy.d_model, anatomy.d_inner, seed=layer, dtype=torch.float32))


def test_editing_a_layer_leaves_its_own_keys_alone_and_moves_those_above(anatomy):
    requests = rows_of(bos=False)
    before = {layer: KeyPass(anatomy, requests, 0).keys(layer) for layer in (0, 1, 2)}
    anatomy.weight(1).add_(normal(anatomy.d_model, anatomy.d_inner, dtype=torch.float32))
    after = {layer: KeyPass(anatomy, requests, 0).keys(layer) for layer in (0, 1, 2)}
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2], atol=1e-3)


def test_chunks_do_not_matter(anatomy):
    requests = rows_of(bos=True)
    torch.testing.assert_close(
        KeyPass(anatomy, requests, 0, 1).keys(2), KeyPass(anatomy, requests, 0, 32).keys(2), rtol=1e-5, atol=1e-5
    )


def one_by_one(anatomy, requests, layer, options):
    found = [optimise(anatomy, [request], layer, options, 0) for request in requests]
    return {name: torch.cat([getattr(part, name) for part in found]) for name in ("values_ND", "loss_N", "probability_N")}


OPTIONS = TargetOptions(steps=7, lr=0.1, clamp=2.0, weight_decay=0.05)


def test_batched_targets_are_those_of_one_request_at_a_time(anatomy):
    requests = rows_of(bos=True)
    together = optimise(anatomy, requests, 1, OPTIONS, 0)
    alone = one_by_one(anatomy, requests, 1, OPTIONS)
    for name, value in alone.items():
        torch.testing.assert_close(getattr(together, name), value, rtol=1e-4, atol=2e-5)
    assert float((together.values_ND - together.start_ND).norm(dim=1).min()) > 0.01
    torch.testing.assert_close(together.start_ND, plain_values(anatomy, requests, 1), rtol=1e-5, atol=1e-5)


def test_requests_at_once_does_not_matter(anatomy):
    requests = rows_of(bos=False)
    a, b = (optimise(anatomy, requests, 1, replace(OPTIONS, requests_at_once=n), 0) for n in (2, 32))
    torch.testing.assert_close(a.values_ND, b.values_ND, rtol=1e-4, atol=2e-5)


def test_requests_that_are_done_stop_and_are_dropped_without_a_trace():
    """Some stop early, at different steps, others never: rows are dropped on the way."""
    anatomy = Anatomy.of(tiny_model("gpt2"))
    requests, steps = rows_of(bos=False), 15
    free = replace(OPTIONS, steps=steps, lr=0.3, clamp=20.0, weight_decay=0.0, stop_loss=-1.0)
    losses = {}
    optimise(anatomy, requests, 1, free, 0, lambda s: note(losses, s))

    def lengths(threshold):
        return [next((i + 1 for i, x in enumerate(losses[r]) if x < threshold), steps) for r in sorted(losses)]

    every = sorted(float(x) + 1e-4 for loss in losses.values() for x in loss)
    threshold = next(t for t in every if max(lengths(t)) == steps and len(set(lengths(t))) >= 3)
    seen = {}
    options = replace(free, stop_loss=threshold)
    together = optimise(anatomy, requests, 1, options, 0, lambda s: note(seen, s))
    assert [len(seen[r]) for r in sorted(seen)] == lengths(threshold)
    for request, loss in seen.items():
        torch.testing.assert_close(torch.stack(loss), torch.stack(losses[request][: len(loss)]), rtol=1e-4, atol=1e-5)
    alone = one_by_one(anatomy, requests, 1, options)
    torch.testing.assert_close(together.values_ND, alone["values_ND"], rtol=1e-4, atol=5e-5)


def note(into, step):
    for request, loss in zip(step.requests.tolist(), step.total, strict=True):
        into.setdefault(request, []).append(loss)


def test_first_step_clamp_and_terms():
    anatomy = Anatomy.of(tiny_model("llama"))
    requests = rows_of(bos=True)
    seen = []
    options = replace(OPTIONS, lr=0.5, clamp=0.25, steps=5)
    found = optimise(anatomy, requests, 1, options, 0, seen.append)
    assert len(seen) == 5 and float(seen[0].delta_ND.abs().max()) == 0.0 and float(seen[0].kl.abs().max()) < 1e-6
    allowed = 0.25 * found.start_ND.norm(dim=1)
    moved = (found.values_ND - found.start_ND).norm(dim=1)
    assert bool((moved <= allowed * (1 + 1e-5)).all()) and bool((moved > 0.99 * allowed).any())
    torch.testing.assert_close(seen[2].total, seen[2].nll + seen[2].kl + seen[2].decay)
    expected = options.weight_decay * seen[2].delta_ND.norm(dim=1) / found.start_ND.norm(dim=1) ** 2
    torch.testing.assert_close(seen[2].decay, expected)
    # Unclamped, Adam's first step is the learning rate in every coordinate.
    free = []
    optimise(anatomy, requests, 1, replace(options, clamp=1e3), 0, free.append)
    torch.testing.assert_close(free[1].delta_ND.abs(), torch.full_like(free[1].delta_ND, 0.5), rtol=1e-3, atol=0)


@torch.no_grad()
def test_nll_without_a_change_is_the_models_own():
    anatomy = Anatomy.of(tiny_model("gemma2"))
    requests = rows_of(bos=True)
    seen = []
    with torch.enable_grad():
        optimise(anatomy, requests, 1, replace(OPTIONS, steps=1), 0, seen.append)
    for index, request in enumerate(requests):
        per_row = []
        for row in request.rewriting:
            log_p = anatomy.model(torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
            per_row.append(torch.stack([-log_p[at, token] for at, token in row.labels]).mean())
        assert float(seen[0].nll[index]) == pytest.approx(float(torch.stack(per_row).mean()), rel=1e-4)
        assert float(seen[0].probability[index]) == pytest.approx(float((-torch.stack(per_row)).exp().mean()), rel=1e-3)


def test_the_model_is_left_as_it_was():
    anatomy = Anatomy.of(tiny_model("gptj"))
    before = {name: value.clone() for name, value in anatomy.model.state_dict().items()}
    state = torch.get_rng_state()
    optimise(anatomy, rows_of(bos=False), 1, OPTIONS, 0)
    KeyPass(anatomy, rows_of(bos=False), 0).keys(1)
    assert all(torch.equal(before[name], value) for name, value in anatomy.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 0.0}, {"clamp": -1.0}, {"kl_factor": -0.1}, {"requests_at_once": 0}, {"context_starts": ()}]
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(EditError, match=next(iter(wrong))):
        TargetOptions(**wrong)


def test_a_target_layer_from_which_no_answer_is_reached_is_refused(anatomy):
    """Adam would turn the rounding of a gradient that is zero into full steps."""
    last = len(anatomy.blocks) - 1
    with pytest.raises(EditError, match=f"block {last}, the last one, .* name lower blocks"):
        optimise(anatomy, rows_of(False), last, TargetOptions(steps=2), 0)
    ends_there = rows_of(False, facts=(("We know of {}", "Rome", "Paris"),))
    assert optimise(anatomy, ends_there, last, TargetOptions(steps=2), 0).values_ND.isfinite().all()
