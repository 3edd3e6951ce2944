"""Rows continued from cached keys and values are the whole rows."""

from dataclasses import replace

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.passes.forward import logits_at, starting_after
from lit_edit.passes.suffix import continues_exactly, suffixes
from tests.tiny import FAMILIES, tiny_model

ROWS = [[(7 * i + 3) % 300 for i in range(start, start + size)] for start, size in ((0, 14), (5, 9), (2, 6), (3, 2), (1, 1))]
STARTS = [9, 3, 0, 1, 0]


@torch.no_grad()
def said(anatomy, rows, starts, layer, change=None):
    cut = suffixes(anatomy, rows, starts, layer, 0)
    picks = [(r, c - int(cut.start_R[r])) for r, row in enumerate(rows) for c in range(starts[r], len(row))]
    hidden = cut.hidden_RSD.clone()
    if change is not None:
        for row, at in enumerate(starts):
            hidden[row, at - int(cut.start_R[row])] += change[row]
    row_P, column_P = torch.tensor(picks).T
    with starting_after(anatomy, layer, hidden):
        first = logits_at(anatomy, cut.inputs(), row_P, column_P)
        again = logits_at(anatomy, cut.inputs(), row_P, column_P)
    assert torch.equal(first, again)  # a pass leaves the cache as it was
    return cut, first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_suffixes_say_what_whole_rows_say(family, layer):
    anatomy = Anatomy.of(tiny_model(family))
    assert anatomy.continues
    change = torch.randn(len(ROWS), anatomy.d_model, generator=torch.Generator().manual_seed(0))
    cut, found = said(anatomy, ROWS, STARTS, layer, change)
    assert cut.past is not None and cut.hidden_RSD.shape[1] == 6
    whole, expected = said(replace(anatomy, continues=False), ROWS, STARTS, layer, change)
    assert whole.past is None and whole.hidden_RSD.shape[1] == 14
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_rows_can_be_dropped():
    anatomy = Anatomy.of(tiny_model("gemma2"))
    kept = torch.tensor([True, False, False, True, True])
    cut = suffixes(anatomy, ROWS, STARTS, 1, 0).only(kept)
    part = suffixes(anatomy, [ROWS[0], ROWS[3], ROWS[4]], [STARTS[0], STARTS[3], STARTS[4]], 1, 0)
    with torch.no_grad(), starting_after(anatomy, 1, cut.hidden_RSD):
        found = anatomy.model(**cut.inputs(), use_cache=False).logits
    with torch.no_grad(), starting_after(anatomy, 1, part.hidden_RSD):
        expected = anatomy.model(**part.inputs(), use_cache=False).logits
    for row, size in enumerate((5, 1, 1)):
        torch.testing.assert_close(found[row, :size], expected[row, :size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("starts", [[0, 0, 0, 0, 0]])
def test_without_prefixes_nothing_is_cached(starts):
    assert suffixes(Anatomy.of(tiny_model("gpt2")), ROWS, starts, 1, 0).past is None


def test_above_the_last_block_nothing_is_cached():
    anatomy = Anatomy.of(tiny_model("gpt2"))
    assert suffixes(anatomy, ROWS, STARTS, len(anatomy.blocks) - 1, 0).past is None


def test_a_model_that_ignores_the_cache_is_found_out(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward

    def forgetful(input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, **kwargs):
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        return forward(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, **kwargs)

    assert continues_exactly(Anatomy.of(model))
    monkeypatch.setattr(model, "forward", forgetful)
    assert not Anatomy.of(model).continues


def test_a_model_that_fails_with_a_cache_is_found_out(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward

    def strict(input_ids=None, attention_mask=None, use_cache=None, position_ids=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, position_ids=position_ids)

    monkeypatch.setattr(model, "forward", strict)
    assert not Anatomy.of(model).continues
