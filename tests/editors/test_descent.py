"""Descent on chosen parameters: when it ends, what it skips, and what it leaves alone."""

import pytest
import torch
from tuning import answer_losses, rows_first, rows_of

from lit_edit.anatomy import Anatomy
from lit_edit.editors.finetune import FT
from lit_edit.passes.descent import DescentOptions, descend
from tests.tiny import tiny_model


@pytest.fixture(params=["gpt2", "llama"])
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


def test_training_ends_when_it_is_good_enough(anatomy):
    name = anatomy.weight_name(0)
    start = dict(anatomy.model.named_parameters())[name].detach()
    rows = [row.rewriting[0] for row in rows_of(FT())]

    def follow(**options):
        losses = []
        descend(
            anatomy, {name: start}, rows, 0, DescentOptions(lr=1e-3, **options), on_epoch=lambda _, loss: losses.append(loss)
        )
        return losses

    whole = follow(steps=8)
    assert len(whole) == 8 and whole == sorted(whole, reverse=True)
    assert follow(steps=8, enough=(whole[4] + whole[5]) / 2) == whole[:6]
    with torch.no_grad():
        mean = float(rows_first(answer_losses(anatomy)))
    assert follow(steps=3, minibatch=2, enough=1e9) == pytest.approx([mean], rel=1e-5), "a mean over rows, not mini-batches"
    done = descend(anatomy, {name: start}, rows, 0, DescentOptions(enough=1e9))
    assert torch.equal(done[name], start), "a mini-batch that is good enough already is skipped"


def test_a_mini_batch_that_is_good_enough_is_skipped_alone(anatomy):
    name = anatomy.weight_name(0)
    start = dict(anatomy.model.named_parameters())[name].detach()
    with torch.no_grad():
        losses = sorted((float(loss.mean()), i) for i, loss in enumerate(answer_losses(anatomy)))
    rows = [rows_of(FT())[i].rewriting[0] for _, i in losses]  # the worst comes last: nothing moves before its turn
    options = DescentOptions(steps=1, minibatch=1, enough=(losses[1][0] + losses[2][0]) / 2)
    trained = descend(anatomy, {name: start}, rows, 0, options)[name]
    assert not torch.equal(trained, start)
    assert torch.equal(trained, descend(anatomy, {name: start}, rows[2:], 0, options)[name])


def test_any_parameter_can_be_trained(anatomy):
    name = next(name for name, value in anatomy.model.named_parameters() if value.dim() == 1 and "2." in name)
    start = dict(anatomy.model.named_parameters())[name].detach().clone()
    trained = descend(anatomy, {name: start}, [row.rewriting[0] for row in rows_of(FT())], 0, DescentOptions(steps=3))
    assert list(trained) == [name] and not torch.equal(trained[name], start)
    assert torch.equal(dict(anatomy.model.named_parameters())[name], start)
