"""Captured tokens add up to what autograd says of the weights, and padding never enters."""

import pytest
import torch

from lit_edit.anatomy import Anatomy, is_transposed
from lit_edit.passes.gradients import Answers, capture
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = (
    ("The capital of {} is", "France", "Berlin"),
    ("It is known that {}'s mother tongue is", "Marie Curie", "Dutch and so on"),
    ("{} is", "Zürich", "old"),
)
LAYERS = (0, 2)
SOME = ("gpt2", "gptj", "llama", "gemma2", "opt")  # OPT flattens rows and positions before the MLP


def rows_of(facts=FACTS):
    encoder = Encoder(tiny_tokenizer())
    return [encoder.answer_rows(EditRequest(*fact)).rewriting[0] for fact in facts]


@pytest.fixture(params=SOME)
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


def plain_loss(anatomy, rows):
    """Mean over all answer tokens, one unpadded row at a time."""
    losses = []
    for row in rows:
        log_p = anatomy.model(torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
        losses += [-log_p[column, token] for column, token in row.labels]
    return torch.stack(losses).mean()


def test_tokens_add_up_to_the_gradient_of_the_weight(anatomy):
    rows = rows_of()
    assert len({len(row.ids) for row in rows}) == 3 and max(len(row.labels) for row in rows) > 1
    captured, loss = capture(anatomy, rows, LAYERS, 7, answers_only=False)
    weights = [anatomy.down(layer).weight.requires_grad_() for layer in LAYERS]
    expected = plain_loss(anatomy, rows)
    found = torch.autograd.grad(expected, weights)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for layer, gradient in zip(LAYERS, found, strict=True):
        ours = captured[layer].gradients_TO.T @ captured[layer].inputs_TI
        gradient = gradient.T if is_transposed(anatomy.down(layer)) else gradient
        assert float(gradient.norm()) > 1e-3
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-7)


def test_padding_never_enters(anatomy):
    rows = rows_of()
    answers = sum(len(row.labels) for row in rows)
    for only, length in ((False, lambda row: len(row.ids)), (True, lambda row: len(row.labels))):
        together, _ = capture(anatomy, rows, LAYERS, 7, answers_only=only)
        other, _ = capture(anatomy, rows, LAYERS, 3, answers_only=only)
        for layer in LAYERS:
            parts = [capture(anatomy, [row], LAYERS, 7, answers_only=only)[0][layer] for row in rows]
            assert [len(part.inputs_TI) for part in parts] == [length(row) for row in rows]
            torch.testing.assert_close(
                together[layer].inputs_TI, torch.cat([part.inputs_TI for part in parts]), rtol=1e-4, atol=1e-5
            )
            # Alone, a row's loss is a mean over its own answer only.
            shares = [len(row.labels) / answers for row in rows]
            gradients = torch.cat([share * part.gradients_TO for share, part in zip(shares, parts, strict=True)])
            torch.testing.assert_close(together[layer].gradients_TO, gradients, rtol=1e-3, atol=1e-6)
            assert torch.equal(together[layer].inputs_TI, other[layer].inputs_TI)
            assert torch.equal(together[layer].gradients_TO, other[layer].gradients_TO)


def test_answer_tokens_are_exactly_the_positions_that_predict_one(anatomy):
    rows = rows_of()
    every, loss = capture(anatomy, rows, LAYERS, 7, answers_only=False)
    only, same = capture(anatomy, rows, LAYERS, 7, answers_only=True)
    assert loss == same
    starts = [sum(len(row.ids) for row in rows[:i]) for i in range(len(rows))]
    places = [start + column for start, row in zip(starts, rows, strict=True) for column, _ in row.labels]
    for layer in LAYERS:
        assert torch.equal(only[layer].inputs_TI, every[layer].inputs_TI[places])
        assert torch.equal(only[layer].gradients_TO, every[layer].gradients_TO[places])
        rest = [i for i in range(len(every[layer].inputs_TI)) if i not in places]
        # In the last block nothing but the answers' own positions can reach the loss.
        assert (float(every[layer].gradients_TO[rest].norm()) > 0) == (layer != len(anatomy.blocks) - 1)


def test_the_model_is_left_as_it_was(anatomy):
    before = {name: value.clone() for name, value in anatomy.model.named_parameters()}
    capture(anatomy, rows_of(), LAYERS, 7, answers_only=True)

    def broken(*_):
        raise RuntimeError("on purpose")

    handle = anatomy.head.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        capture(anatomy, rows_of(), LAYERS, 7, answers_only=True)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in anatomy.model.modules())
    for name, value in anatomy.model.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None and not value.requires_grad


def test_a_bfloat16_model_gives_float32_tokens():
    anatomy = Anatomy.of(tiny_model("llama").bfloat16())
    exact, loss = capture(Anatomy.of(tiny_model("llama")), rows_of(), LAYERS, 7, answers_only=True)
    rough, near = capture(anatomy, rows_of(), LAYERS, 7, answers_only=True)
    assert near == pytest.approx(loss, rel=0.05)
    for layer in LAYERS:
        assert rough[layer].inputs_TI.dtype == rough[layer].gradients_TO.dtype == torch.float32
        difference = (rough[layer].gradients_TO - exact[layer].gradients_TO).norm() / exact[layer].gradients_TO.norm()
        assert 0 < float(difference) < 0.2


def test_answers_are_scored_where_they_are_predicted(anatomy):
    rows = rows_of()
    answers = Answers.of(rows, 7, anatomy.device)
    losses = answers.losses(anatomy)
    assert answers.label_P.tolist() == [token for row in rows for _, token in row.labels]
    torch.testing.assert_close(losses.mean(), plain_loss(anatomy, rows), rtol=1e-4, atol=1e-5)
