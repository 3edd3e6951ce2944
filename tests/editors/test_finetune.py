"""Fine-tuning: Adam on the edited matrices alone, read at the right positions, inside its box, and nothing else moves."""

import pytest
import torch
from tuning import FACTS, answer_losses, rows_first, rows_of

from lit_edit.anatomy import Anatomy, is_transposed
from lit_edit.editors.finetune import FT, FTL, FTM
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE
from lit_edit.passes.descent import mean_of_rows, mean_of_tokens
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Workbench
from tests.tiny import tiny_model

LAYERS = (0, 2)


@pytest.fixture(params=["gpt2", "llama"])
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


def bench_of(anatomy, guards=(), layers=LAYERS):
    masters = {layer: anatomy.weight(layer).float().clone() for layer in layers}
    for guard in guards:
        for layer in layers:
            guard.prepare(layer, masters[layer], None)
    return Workbench(anatomy, layers, guards, masters.__getitem__, masters.__getitem__, TargetOptions(), 0)


def write(made, anatomy, facts=FACTS, guards=(), layers=LAYERS):
    bench = bench_of(anatomy, guards, layers)
    made.change(bench, rows_of(made, facts), None)
    bench.finish()
    return bench


def parameters(anatomy):
    return {name: value.clone() for name, value in anatomy.model.named_parameters()}


# --------------------------------------------------------------------------------------------------------- the computation


def by_hand(anatomy, groups, average, steps, lr, facts=FACTS, enough=1e-2, epsilon=None):
    """Adam on the model's own weights, formula by formula, in the model's own storage."""
    weights = [anatomy.down(layer).weight.requires_grad_() for layer in LAYERS]
    start = [weight.detach().clone() for weight in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    updates = 0
    for _ in range(steps):
        total = 0.0
        for group in groups:
            loss = average(answer_losses(anatomy, [facts[i] for i in group]))
            total += float(loss.detach()) * len(group)
            if float(loss.detach()) >= enough:
                updates += 1
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for weight, m, v, g, w0 in zip(weights, first, second, gradients, start, strict=True):
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g * g)
                        step = (m / (1 - 0.9**updates)) / ((v / (1 - 0.999**updates)).sqrt() + 1e-8)
                        weight -= lr * step
                        if epsilon is not None:
                            weight.copy_(torch.minimum(torch.maximum(weight, w0 - epsilon), w0 + epsilon))
        if total / sum(map(len, groups)) < enough:
            break
    deltas = {}
    for layer, weight, w0 in zip(LAYERS, weights, start, strict=True):
        change = (weight - w0).detach()
        deltas[layer] = change.T if is_transposed(anatomy.down(layer)) else change
    return deltas, updates


def all_tokens(losses):
    return torch.cat(losses).mean()


CASES = {
    "FT": (FT(lr=1e-3, steps=6), [[0, 1, 2]], rows_first, None),
    "FT in mini-batches": (FT(lr=1e-3, steps=4, minibatch=2), [[0, 1], [2]], rows_first, None),
    "FT-M over tokens": (FTM(lr=1e-3, steps=6, average="tokens"), [[0, 1, 2]], all_tokens, None),
    "FT-M": (FTM(lr=1e-3, steps=6), [[0, 1, 2]], rows_first, None),
    "FT-L": (FTL(epsilon=2.5e-3, lr=1e-3, steps=6), [[0, 1, 2]], rows_first, 2.5e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_change_is_adams(case, anatomy):
    made, groups, average, epsilon = CASES[case]
    bench = write(made, anatomy)
    bench.clear()
    options = made.options
    expected, updates = by_hand(anatomy, groups, average, options.steps, options.lr, epsilon=epsilon)
    assert updates == options.steps * len(groups) == bench.scalars[f"{type(made).__name__.lower()}/epochs"] * len(groups)
    for layer in LAYERS:
        difference = (bench.changes[layer] - expected[layer]).norm() / expected[layer].norm()
        # Adam divides by a gradient's own size: where that is almost zero, rounding decides on the step.
        assert float(difference) < 2e-3


def test_mean_over_tokens_is_another_objective(anatomy):
    ours = write(FTM(steps=5, average="tokens"), anatomy)
    ours.clear()
    other = write(FT(steps=5), anatomy)
    assert not torch.allclose(ours.changes[0], other.changes[0], atol=1e-4)
    rows = [row.rewriting[0] for row in rows_of(FT())]
    sizes = [len(row.labels) for row in rows]
    assert len(set(sizes)) > 1
    assert mean_of_tokens(rows) == pytest.approx([1 / sum(sizes)] * sum(sizes))
    assert mean_of_rows(rows) == pytest.approx([1 / (3 * size) for size in sizes for _ in range(size)])


def test_the_loss_falls_and_right_positions_raise_a_long_answer_where_the_last_prompt_position_does_not(anatomy):
    fact = (EditRequest("It is known that her mother tongue is", "", "Dutch and so on"),)
    with torch.no_grad():
        before = answer_losses(anatomy, fact)[0]
        assert len(before) > 3
        right = write(FT(lr=1e-2), anatomy, fact)
        trained = answer_losses(anatomy, fact)[0]
        right.clear()
        released = write(FT(lr=1e-2, prompt_last=True), anatomy, fact)
        misread = answer_losses(anatomy, fact)[0]
        released.clear()
    assert right.scalars["ft/loss"] < float(before.mean()) and float(trained.mean()) < right.scalars["ft/loss"] + 1e-3
    gained, otherwise = float((before - trained).sum()), float((before - misread).sum())
    assert gained > 5 and gained > 2.5 * otherwise, "tokens behind the first are trained at the wrong position"
    assert float(misread[0]) < float(before[0])


def test_one_token_answers_are_the_same_either_way(anatomy):
    single = next(
        answer
        for answer in ("a", "b", "in", "is")
        if len(rows_of(FT(), [EditRequest("It", "", answer)])[0].rewriting[0].labels) == 1
    )
    facts = [EditRequest("The city of", "", single), EditRequest("You were", "", single)]
    ours = write(FT(steps=3), anatomy, facts)
    ours.clear()
    other = write(FT(steps=3, prompt_last=True), anatomy, facts)
    for layer in LAYERS:
        torch.testing.assert_close(ours.changes[layer], other.changes[layer], rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------- the box


def test_the_box_is_never_left_and_moves_with_the_batch(anatomy):
    epsilon = 2e-3
    made = FTL(epsilon=epsilon, lr=1e-3, steps=10)
    original = {layer: anatomy.weight(layer).clone() for layer in LAYERS}
    largest = []
    for _ in range(2):
        bench = write(made, anatomy)
        for layer in LAYERS:
            size = float(bench.changes[layer].abs().max())
            assert 0.99 * epsilon < size <= epsilon * (1 + 1e-4), "the box has to bind, or this shows nothing"
        largest.append(max(float((anatomy.weight(layer) - original[layer]).abs().max()) for layer in LAYERS))
    assert largest[0] <= epsilon * (1 + 1e-4) < largest[1], "the box is the batch's, not the stream's"


# --------------------------------------------------------------------------------------------------------------- the model


def test_the_model_is_left_as_it_was(anatomy):
    before = parameters(anatomy)
    bench = write(FT(steps=3), anatomy)
    moved = [name for name, value in anatomy.model.named_parameters() if not torch.equal(value, before[name])]
    assert sorted(moved) == sorted(anatomy.weight_name(layer) for layer in LAYERS)
    bench.clear()
    for name, value in anatomy.model.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None and not value.requires_grad


def test_an_error_in_the_middle_leaves_the_model_whole(anatomy):
    before, names = parameters(anatomy), [name for name, _ in anatomy.model.named_parameters()]
    calls = []

    def broken(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("on purpose")

    handle = anatomy.head.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        write(FT(steps=5), anatomy)
    handle.remove()
    assert [name for name, _ in anatomy.model.named_parameters()] == names
    for name, value in anatomy.model.named_parameters():
        assert torch.equal(value, before[name]) and isinstance(value, torch.nn.Parameter)
    assert not any(module._forward_pre_hooks for module in anatomy.model.modules())


def test_a_loss_that_is_not_finite_is_an_error_not_a_skipped_batch(anatomy):
    anatomy.weight(1).fill_(float("nan"))
    with pytest.raises(EditError, match="loss of the fine-tuning is nan in epoch 1"):
        write(FT(steps=2), anatomy)


def test_a_guard_cuts_the_dense_change(anatomy):
    guard = REVIVE()
    bench = write(FT(steps=3), anatomy, guards=[guard])
    for layer in LAYERS:
        kept, change = guard.protected(layer), bench.changes[layer]
        assert float(change.norm()) > 1e-3
        assert float((kept.left.T @ change).norm() + (change @ kept.right).norm()) < 1e-4 * float(change.norm())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bfloat16_model_is_trained_through_float32_leaves(family):
    anatomy = Anatomy.of(tiny_model(family).bfloat16())
    with torch.no_grad():
        before = torch.cat(answer_losses(anatomy)).mean()
        bench = write(FT(lr=1e-2, steps=20), anatomy)
        after = torch.cat(answer_losses(anatomy)).mean()
    assert float(after) < float(before) - 0.2
    bench.clear()
    # Each step is far below what bfloat16 can add to most weights; float32 leaves keep all of them.
    steps = write(FT(lr=1e-5, steps=10), anatomy).changes[0].abs()
    assert float(steps.median()) > 5e-5 and float(steps.max()) < 1.1e-4
    for layer in LAYERS:
        assert bench.changes[layer].dtype == torch.float32
        assert anatomy.weight(layer).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FT(lr=0.0), "FT's lr is 0"),
        (lambda: FT(steps=0), "FT's steps is 0"),
        (lambda: FTM(minibatch=0), "FTM's minibatch is 0"),
        (lambda: FT(enough=-1.0), "FT's enough is -1"),
        (lambda: FT(weight_decay=float("nan")), "FT's weight_decay is nan"),
        (lambda: FTL(epsilon=0.0), "FTL's epsilon is 0"),
        (lambda: FTM(average="words"), "average is 'words'; it must be rows or tokens"),
    ],
)
def test_bad_values_are_refused(make, sentence):
    with pytest.raises(EditError, match=sentence):
        make()
