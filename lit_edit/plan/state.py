"""What editors and guards hold on to: state that grows with the stream, and what is made once from the original model.

Legend: O = d_out, I = d_in, H = remembered keys, R = directions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lit_edit.algebra.history import KeyHistory
from lit_edit.editors import (
    FT,
    MEND,
    NSE,
    ROME,
    AlphaEdit,
    BetaEdit,
    Editor,
    EvoEdit,
    LyapLock,
    UltraEdit,
)
from lit_edit.editors.evoedit import Span
from lit_edit.editors.locate import LocateThenEdit
from lit_edit.editors.lyaplock import Account
from lit_edit.editors.preserving import PreservingEditor
from lit_edit.guards.base import Guard

PROTECTED = 0.5
"""Share of the input directions that a null-space editor is taken to protect where its second moments are not there to tell."""


@dataclass(frozen=True)
class State:
    """Bytes of all layers."""

    buffers: int
    """Buffers at the end of the stream: what a checkpoint holds of the editor."""
    largest: int
    """The most that buffers came to, at any batch."""
    replaced: int
    """What a batch replaces and may have to take back: remembered keys, as they were before it."""
    working: int
    """What is computed from them and kept between batches (applied keys and their factor), at its largest."""
    inverse: int
    """What is made once from the second moment: an inverse, eigenvectors, protected directions."""
    preparing: int
    """What making it takes in addition, while it is made; one layer at a time."""


def state_of(editor: Editor, layers: int, d_out: int, d_in: int, sizes: Sequence[int], protected: float = PROTECTED) -> State:
    """The state over a stream, by the editor's own modules on tensors without numbers.

    Args:
        editor: as configured; it is not touched.
        layers: edited blocks.
        d_out: rows of the edited weight.
        d_in: its columns.
        sizes: requests that every batch writes.
        protected: share of the input directions that a null-space editor protects.
    """
    held, shared = _allocated(editor, layers, d_out, d_in)
    growing = [module for module in held.modules() if isinstance(module, KeyHistory | Account | Span)]
    histories = [module for module in growing if isinstance(module, KeyHistory)]
    largest, most, replaced = _buffers(held), 0, 0
    # An editor that applies requests in order remembers one at a time.
    portions = [1] * sum(sizes) if getattr(editor, "in_order", False) else [size for size in sizes if size]
    for size in portions if growing else ():
        before = _buffers(held)
        most = max([most, *map(len, histories)])  # a batch's keys are applied when the next one is solved for
        for module in growing:
            _append(module, size, d_out, d_in)
        now = _buffers(held)
        replaced = max(replaced, before) if now != before else replaced
        largest = max(largest, now)
    working = _thin(most, portions[0], d_in) if most else 0
    working += sum(8 * d_in**2 for history in histories if history.folded.numel())  # the folded metric, inverted
    working += sum(8 * d_in**2 for one in growing if isinstance(one, Account) and one.gram.numel())
    end = _buffers(held)
    if isinstance(editor, BetaEdit) and sum(sizes) >= editor.refresh:
        end, largest = (value + round(8 * protected * d_in**2) for value in (end, largest))
    inverse, preparing = _once(editor, d_in, protected)

    def of_all(one: int) -> int:
        return shared + layers * (one - shared) if one else 0

    return State(of_all(end), of_all(largest), of_all(replaced), layers * working, layers * inverse, preparing)


def _allocated(editor: Editor, layers: int, d_out: int, d_in: int) -> tuple[Editor, int]:
    """A copy with the buffers of one layer, and the bytes of those that all layers share."""
    with torch.device("meta"):
        one, two = copy.deepcopy(editor), copy.deepcopy(editor)
        if isinstance(editor, MEND):
            return one, 0  # a file of its own, which allocating would read
        one.allocate(0, d_out, d_in)
        if layers == 1:
            return one, 0
        two.allocate(0, d_out, d_in)
        two.allocate(1, d_out, d_in)
    return one, 2 * _buffers(one) - _buffers(two)


def _append(module: nn.Module, size: int, d_out: int, d_in: int) -> None:
    keys = torch.empty(size, d_in, device="meta")
    if isinstance(module, KeyHistory):
        module.append(keys)
    elif isinstance(module, Account):
        module.append(keys, torch.empty(size, d_out, device="meta"))
    elif isinstance(module, Span):
        width = min(module.basis.shape[1] + size, d_in)
        module.basis = module.basis.new_empty(d_in, width)


def _buffers(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.buffers())


def _thin(keys: int, portion: int, d_in: int) -> int:
    """Keys, applied keys and factor of :class:`lit_edit.solver.WithHistory`, whose stacks grow by half."""
    room, count = portion, portion
    while count < keys:
        count += portion
        room = max(count, 3 * count // 2) if count > room else room
    return room * d_in * (4 + 8) + 8 * keys**2


def _once(editor: Editor, d_in: int, protected: float) -> tuple[int, int]:
    """Bytes kept, and bytes needed meanwhile, of what is made from a second moment of a layer.

    A Cholesky factor and its inverse take three matrices in float64 besides the one that is kept; an eigendecomposition takes
    the matrix, its vectors and LAPACK's workspace of two more.
    """
    square = d_in**2
    if isinstance(editor, BetaEdit):
        return round((8 + 8 * protected) * square), 32 * square
    if isinstance(editor, AlphaEdit):
        return round(8 * protected * square), 40 * square
    if isinstance(editor, LyapLock):
        return 8 * square, 32 * square
    if isinstance(editor, PreservingEditor) or (isinstance(editor, ROME) and editor.adjust):
        return 8 * square + (8 * square if isinstance(editor, NSE) and editor.neuron_threshold < 1 else 0), 24 * square
    return 0, 0


def keeps_moment(editor: Editor) -> bool:
    """Whether the second moment itself (``4 I^2`` bytes a layer) stays beside what is made from it."""
    plain = isinstance(editor, PreservingEditor) and not isinstance(editor, BetaEdit)
    return plain or (isinstance(editor, ROME) and editor.adjust)


def needs_targets(editor: Editor) -> bool:
    """Whether target values are optimised."""
    return isinstance(editor, LocateThenEdit)


def rank_of(editor: Editor, guards: Sequence[Guard], requests: int, answers: int, tokens: int) -> int | None:
    """Rank of a batch's change of a layer as it is written, ``None`` where it is dense.

    Args:
        editor: the editor.
        guards: what cuts its change.
        requests: of the batch.
        answers: answer tokens of the batch.
        tokens: tokens of its rows.
    """
    names = {type(guard).__name__ for guard in guards}
    if "RECT" in names:
        return None
    if any(type(guard).__name__ == "PRUNE" and getattr(guard, "mode", "view") != "view" for guard in guards):
        return None
    if isinstance(editor, FT | LyapLock):
        return None
    if isinstance(editor, UltraEdit):
        return answers
    if isinstance(editor, MEND):
        return tokens
    return requests * (editor.passes if isinstance(editor, NSE) else 1)


def closed_directions(editor: Editor, d_in: int, written: int, protected: float = PROTECTED) -> int:
    """Input directions that a null-space editor keeps out of, of which ``protected`` is the share at the beginning."""
    if isinstance(editor, EvoEdit):
        return min(round(protected * d_in) + written, d_in - 1)
    return round(protected * d_in) if isinstance(editor, AlphaEdit | BetaEdit) else 0
