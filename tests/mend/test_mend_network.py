"""MEND's hyper-network: its formula, its normaliser, and the change that it makes of a gradient."""

import pytest
import torch
from mending import SHAPES, I, O, disturbed, ready, tokens
from tiny import normal

from lit_edit.errors import EditError
from lit_edit.mend.network import HyperNetwork, RunningNorm, joined
from lit_edit.passes.gradients import Captured


def test_the_untrained_network_is_the_identity_on_standardised_factors():
    network = ready()
    x, g = network.factors(2, tokens(5, 3))
    seen = torch.cat([joined(tokens(40, 1)), joined(tokens(30, 2))]).double()
    expected = (joined(tokens(5, 3)) - seen.mean(0)) / (seen.std(0) + 1e-7)
    torch.testing.assert_close(torch.cat([x, g], 1).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_blocks_are_the_published_formula():
    network = disturbed()
    x, g = network.factors(2, tokens(5, 3))
    h = network.transforms[f"{O}x{I}"].norm(joined(tokens(5, 3)))
    for block in network.transforms[f"{O}x{I}"].blocks:
        inner = (block.second_FR @ (block.first_RF @ h.T)).T + block.bias_F
        h = torch.relu(block.scale_PF[1] * inner + block.shift_PF[1]) + h
    torch.testing.assert_close(torch.cat([x, g], 1), h)
    other = network.factors(1, tokens(5, 3))
    assert not torch.allclose(other[0], x), "layers of one shape share the network, but not scale and shift"


def test_what_starts_at_zero_still_learns():
    network = ready()
    x, g = network.factors(1, tokens(5, 3))
    (x.square().sum() + g.sum()).backward()
    block = network.transforms[f"{O}x{I}"].blocks[0]
    assert block.second_FR.grad.abs().sum() > 0 and block.shift_PF.grad[0].abs().sum() > 0


@pytest.mark.parametrize("sizes", [(1, 1), (7, 1, 30), (100,)])
def test_the_streamed_norm_is_that_of_everything_at_once(sizes):
    blocks = [1e3 + normal(size, 5, seed=index) for index, size in enumerate(sizes)]
    norm = RunningNorm(5)
    for block in blocks:
        norm.update(block)
    norm.update(torch.zeros(0, 5))
    every = torch.cat(blocks)
    torch.testing.assert_close(norm.mean_F, every.mean(0))
    torch.testing.assert_close(norm.deviation_F, every.std(0), rtol=1e-9, atol=0)
    assert norm.count == len(every)


def test_the_norm_needs_two_tokens_and_moves_in_training_only():
    network = HyperNetwork(SHAPES, rank=4)
    with pytest.raises(EditError, match="has seen 1 tokens"):
        network.train().delta(1, tokens(1))
    network.delta(1, tokens(4))
    assert network.tokens_seen == 5
    network.eval().delta(1, tokens(4))
    assert network.tokens_seen == 5


def test_tokens_without_input_or_gradient_are_dropped():
    network, some = disturbed(), tokens(6)
    silent = Captured(some.inputs_TI.clone(), some.gradients_TO.clone())
    silent.inputs_TI[2], silent.gradients_TO[4] = 0.0, 0.0
    silent.inputs_TI[0, 0] = 0.0
    left, right = network.delta(1, silent).factors
    assert left.shape == (O, 4) and right.shape == (4, I)
    kept = Captured(silent.inputs_TI[[0, 1, 3, 5]], silent.gradients_TO[[0, 1, 3, 5]])
    torch.testing.assert_close(network.delta(1, silent).dense(), network.delta(1, kept).dense())
    nothing = Captured(some.inputs_TI, torch.zeros(6, O))
    assert network.delta(1, nothing).dense().abs().sum() == 0


def test_the_thin_change_is_the_sum_over_tokens_downhill():
    network = disturbed(edit_lr=1e-2)
    x, g = network.factors(2, tokens(5, 3))
    dense = sum(-network.rates_P[1] * torch.outer(g[t], x[t]) for t in range(5))
    delta = network.delta(2, tokens(5, 3))
    assert delta.is_low_rank
    torch.testing.assert_close(delta.dense(), dense)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"rank": 0}, "the rank of the hyper-network is 0"), ({"blocks": 0}, "the blocks"), ({"edit_lr": 0.0}, "edit_lr is 0"),
    ({"shapes": {}}, "no layers"),
])  # fmt: skip
def test_settings_out_of_range_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        HyperNetwork(**{"shapes": SHAPES, **options})
