"""No number that is not finite gets past here: what is aimed at, read, captured, solved, guarded, and carried along.

Editors need no checks of their own: whatever they get from a workbench, or hand to it, has been looked at. A batch that fails
is rejected for the first number that was wrong, not for what later came of it.

Legend: N = requests, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lit_edit.batch.state import State
from lit_edit.delta import Delta, is_finite
from lit_edit.errors import EditError, Rejected
from lit_edit.keys import KeyPass

_LARGEST = torch.finfo(torch.float32).max


def finite(what: str, *values: Tensor) -> None:
    """Let finite numbers pass.

    Args:
        what: what they are, in the plural, with the layer where they belong to one.
        values: the numbers.

    Raises:
        Rejected: if one of them is not finite.
    """
    if not all(is_finite(value) for value in values):
        raise Rejected(f"{what} are not finite")


def writable(what: str, delta: Delta) -> None:
    """Let a change pass that a float32 weight can take.

    A product of finite factors need not be finite; no number of it exceeds its Frobenius norm, which costs no product.

    Args:
        what: what it is, in the singular, with its layer.
        delta: the change ``[d_out, d_in]``.

    Raises:
        Rejected: if a number of it is not finite in float32.
    """
    if not delta.is_finite() or not float(delta.norm()) <= _LARGEST:  # written so that NaN is refused as well
        raise Rejected(f"{what} is not finite")


class FiniteReads(KeyPass):
    """A key pass whose numbers are finite.

    Args:
        reader: where they come from.
    """

    def __init__(self, reader: KeyPass) -> None:
        self._reader = reader

    def keys(self, layer: int) -> Tensor:
        """See :meth:`KeyPass.keys`.

        Raises:
            Rejected: if a key is not finite.
        """
        keys_NI = self._reader.keys(layer)
        finite(f"the keys of layer {layer}", keys_NI)
        return keys_NI

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """See :meth:`KeyPass.rows`.

        Raises:
            Rejected: if a key or an output is not finite.
        """
        inputs_NJI, outputs_NJO = self._reader.rows(layer)
        finite(f"the keys of layer {layer}", inputs_NJI)
        finite(f"the values of layer {layer}", outputs_NJO)
        return inputs_NJI, outputs_NJO

    def values(self, layer: int) -> Tensor:
        """See :meth:`KeyPass.values`.

        Raises:
            Rejected: if a value is not finite.
        """
        values_ND = self._reader.values(layer)
        finite(f"the values of layer {layer}", values_ND)
        return values_ND

    def written(self) -> Tensor:
        """See :meth:`KeyPass.written`.

        Raises:
            Rejected: if an output is not finite.
        """
        written_NO = self._reader.written()
        finite("the outputs of the down-projection", written_NO)
        return written_NO


def new_state(parts: Sequence[nn.Module], before: State) -> None:
    """Let the state pass that a batch or request leaves in editor and guards.

    Args:
        parts: editor and guards.
        before: their state before, see :func:`lit_edit.batch.state.snapshot`; only what has taken its place is looked at.

    Raises:
        Rejected: if a number of it is not finite.
    """
    old = {id(value) for _, _, value in before}
    for part in parts:
        for name, value in part.named_buffers():
            if id(value) not in old and not is_finite(value):
                raise Rejected(f"the state that {type(part).__name__} would carry on ({name}) is not finite")


def sound(tensors: Iterable[tuple[str, Tensor]], advice: str) -> None:
    """Let tensors pass that a run stands on: weights, and what editor and guards carry along.

    Args:
        tensors: with what they are, in the singular.
        advice: what would be right, for the error.

    Raises:
        EditError: naming the first that holds a number that is not finite.
    """
    for what, value in tensors:
        if value.is_floating_point() and not is_finite(value):
            raise EditError(f"{what} holds numbers that are not finite; {advice}")
