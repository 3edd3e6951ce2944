"""Partial forward passes give the numbers of whole ones, to the bit, for every family and every block."""

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.passes.forward import block_outputs, frozen, greedy, logits_at, reading, run_until, starting_after
from lit_edit.prompts import right_pad
from tests.tiny import FAMILIES, normal, tiny_model

ROWS = [[5, 17, 300, 42, 7, 99, 180, 4, 31], [8, 9, 10], [200, 11, 12, 13, 14, 15]]


@pytest.fixture(scope="module", params=FAMILIES)
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


@pytest.fixture
def inputs(anatomy):
    return right_pad(ROWS, 0, anatomy.device)


def own_forwards(anatomy):
    return ["forward" in block.__dict__ for block in anatomy.blocks]


@torch.no_grad()
def test_starting_after_any_block_is_exact(anatomy, inputs):
    full = anatomy.model(**inputs, use_cache=False).logits
    for layer in range(-1, len(anatomy.blocks)):
        hidden = block_outputs(anatomy, inputs, max(layer, 0))
        with starting_after(anatomy, layer, hidden):
            assert torch.equal(anatomy.model(**inputs, use_cache=False).logits, full), layer
    assert not any(own_forwards(anatomy))


@torch.no_grad()
def test_blocks_below_do_not_run(anatomy, inputs):
    hidden = block_outputs(anatomy, inputs, 1)
    ran = []
    with reading(anatomy.down(0), ran.append, None), reading(anatomy.down(1), ran.append, None):
        with starting_after(anatomy, 1, hidden):
            anatomy.model(**inputs, use_cache=False)
        assert not ran
        anatomy.model(**inputs, use_cache=False)
    assert len(ran) == 2


@torch.no_grad()
def test_given_states_matter(anatomy, inputs):
    full = anatomy.model(**inputs, use_cache=False).logits
    noise = normal(3, 9, anatomy.d_model, dtype=torch.float32)
    with starting_after(anatomy, 0, block_outputs(anatomy, inputs, 0) + noise):
        assert not torch.allclose(anatomy.model(**inputs, use_cache=False).logits, full, atol=1e-4)


def test_blocks_are_given_back_after_an_exception(anatomy, inputs):
    hidden = block_outputs(anatomy, inputs, 1)
    with pytest.raises(RuntimeError, match="inside"), starting_after(anatomy, 1, hidden):
        raise RuntimeError("inside")
    assert not any(own_forwards(anatomy))


def test_a_forward_that_someone_else_put_there_survives(anatomy, inputs):
    block = anatomy.blocks[0]
    calls, plain = [], block.forward

    def mine(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    hidden = block_outputs(anatomy, inputs, 0)
    block.forward = mine
    try:
        with starting_after(anatomy, 0, hidden):
            anatomy.model(**inputs, use_cache=False)
        assert not calls and block.forward is mine
    finally:
        del block.forward


@torch.no_grad()
def test_run_until_stops_there(anatomy, inputs):
    ran = []
    with reading(anatomy.down(0), None, ran.append), reading(anatomy.down(1), None, ran.append):
        run_until(anatomy, anatomy.down(0), inputs)
    assert len(ran) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


@torch.no_grad()
def test_logits_at_are_the_models_own(anatomy, inputs):
    rows, columns = torch.tensor([0, 0, 1, 2]), torch.tensor([8, 2, 2, 0])
    full = anatomy.model(**inputs, use_cache=False).logits
    torch.testing.assert_close(logits_at(anatomy, inputs, rows, columns), full[rows, columns], rtol=1e-5, atol=1e-5)
    if anatomy.model.config.model_type == "gemma2":
        assert float(full.abs().max()) < 3.0  # soft-capped, and not by nothing:
        assert float(full.abs().max()) > 0.5


@torch.no_grad()
@torch.no_grad()
def test_greedy_is_the_argmax_token_by_token(anatomy):
    row = list(ROWS[1])
    for _ in range(4):
        row.append(int(anatomy.model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    new = row[len(ROWS[1]) :]
    assert greedy(anatomy, ROWS[1], 4) == new
    assert greedy(anatomy, ROWS[1], 4, {new[2]}) == new[: new.index(new[2])]


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_on_the_left(anatomy, inputs):
    padded = anatomy.model(**inputs, use_cache=False).logits[1, :3]
    alone = anatomy.model(**right_pad([ROWS[1]], 0, anatomy.device), use_cache=False).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_frozen_restores_modes_and_flags(anatomy):
    model = anatomy.model
    first = next(model.parameters())
    model.train()
    first.requires_grad_(True)
    anatomy.blocks[1].eval()
    with frozen(model):
        assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
    assert model.training and not anatomy.blocks[1].training and first.requires_grad
    model.eval().requires_grad_(False)
