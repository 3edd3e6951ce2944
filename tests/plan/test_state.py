"""State of every editor, against the editor's own buffers after the same stream."""

import pytest
import torch

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors import EMMET, ENCORE, FT, MEMIT, NSE, ROME, AlphaEdit, BetaEdit, EvoEdit, LyapLock, RLSEdit, UltraEdit
from lit_edit.plan.state import PROTECTED, rank_of, state_of

OUT, IN, LAYERS = 6, 16, 2
SIZES = [3, 3, 3, 3, 1]  # the history is folded at 8 keys

EDITORS = {
    "memit": lambda: MEMIT(),
    "memit_history": lambda: MEMIT(history=True),
    "emmet": lambda: EMMET(history=True),
    "encore": lambda: ENCORE(),
    "rlsedit": lambda: RLSEdit(),
    "alphaedit": lambda: AlphaEdit(threshold=4.0),
    "nse": lambda: NSE(),
    "lyaplock": lambda: LyapLock(),
    "evoedit": lambda: EvoEdit(threshold=4.0),
    "betaedit": lambda: BetaEdit(threshold=4.0, refresh=1000),
}


def prepared(make):
    torch.manual_seed(0)
    editor = make()
    weight = torch.randn(OUT, IN)
    keys = torch.randn(400, IN)
    for layer in range(LAYERS):
        editor.allocate(layer, OUT, IN)
        editor.prepare(layer, weight, SecondMoment((keys.T @ keys) / len(keys), len(keys)))
    return editor, weight


@pytest.mark.parametrize("name", EDITORS)
def test_buffers_are_those_of_the_editor(name):
    editor, weight = prepared(EDITORS[name])
    largest = 0
    for size in SIZES:
        keys = torch.randn(size, IN)
        for layer in range(LAYERS):
            editor.remember(layer, keys, weight + 0.01 * torch.randn(OUT, IN))
        largest = max(largest, sum(value.nbytes for value in editor.buffers()))
    planned = state_of(EDITORS[name](), LAYERS, OUT, IN, SIZES)
    assert planned.buffers == sum(value.nbytes for value in editor.buffers())
    assert planned.largest == largest


@pytest.mark.parametrize("make", [lambda: UltraEdit(), lambda: FT(), lambda: MEMIT()])
def test_buffers_of_fixed_size(make):
    editor = make()
    for layer in range(LAYERS):
        editor.allocate(layer, OUT, IN)
    assert state_of(make(), LAYERS, OUT, IN, SIZES).buffers == sum(value.nbytes for value in editor.buffers())


def test_inverses_and_what_null_space_editors_protect():
    editor, _ = prepared(EDITORS["memit"])
    assert state_of(MEMIT(), LAYERS, OUT, IN, SIZES).inverse == sum(one.inverse.nbytes for one in editor._start.values())
    assert state_of(ROME(), 1, OUT, IN, SIZES).inverse == 8 * IN * IN
    assert state_of(ROME(adjust=False), 1, OUT, IN, SIZES).inverse == 0
    assert state_of(AlphaEdit(), LAYERS, OUT, IN, SIZES).inverse == LAYERS * 8 * PROTECTED * IN * IN


def test_the_planned_editor_is_left_alone():
    editor = MEMIT(history=True)
    state_of(editor, LAYERS, OUT, IN, SIZES)
    assert not list(editor.buffers()) and not editor._start


def test_ranks_of_changes():
    assert rank_of(MEMIT(), [], 100, 300, 900) == 100
    assert rank_of(NSE(), [], 100, 300, 900) == 200  # two passes over the layers
    assert rank_of(UltraEdit(), [], 100, 300, 900) == 300
    assert rank_of(FT(), [], 100, 300, 900) is None
    assert rank_of(LyapLock(), [], 100, 300, 900) is None
