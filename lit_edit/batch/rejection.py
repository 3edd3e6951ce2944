"""What a change is rejected for on its way into the weights: no solution, what a guard leaves of it, its size.

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_edit.batch.finite import writable
from lit_edit.delta import Delta
from lit_edit.errors import EditError, OutOfMemory, Rejected
from lit_edit.guards.base import Guard
from lit_edit.micro_batches import enough_memory
from lit_edit.parallel.ranks import RankFailed


@contextmanager
def solving(what: str) -> Iterator[None]:
    """Turn the failure of a solve into the rejection of what was to be written.

    Args:
        what: what is solved, with its layer.

    Raises:
        Rejected: if it has no solution.
        OutOfMemory: if memory does not suffice for it, which leaving the batch out would not mend.
    """
    try:
        with enough_memory(what, "a smaller --data.batch_size or a larger device helps"):
            yield
    except (OutOfMemory, RankFailed):
        raise  # nothing that leaving the batch out would mend
    except (torch.linalg.LinAlgError, EditError) as error:
        raise Rejected(f"{what} failed: {error}") from error


def guarded(
    guards: Sequence[Guard],
    layer: int,
    delta: Delta,
    weight_OI: Tensor,
    note: Callable[[str, float], None],
    deferred: bool = True,
) -> Delta:
    """What the guards leave of a change: ``guard_n(... guard_1(delta))``.

    Args:
        guards: in the order in which they act.
        layer: index of the transformer block.
        delta: the change ``[d_out, d_in]``.
        weight_OI: the weight that it is a change of.
        note: takes the name and the value of every number that a guard reports.
        deferred: whether guards take part that wait for the whole batch.

    Raises:
        Rejected: if a guard fails, or what it leaves is not finite.
        OutOfMemory: see :func:`solving`.
    """
    for name, guard in _named(guards):
        if guard.deferred and not deferred:
            continue
        with solving(f"the guard {name} at layer {layer}"):
            cut = guard(layer, delta, weight_OI)
            writable(f"what {name} left of the change of layer {layer}", cut)
            for what, value in guard.report(layer, delta, cut).items():
                note(f"guard/{name}/{what}/layer_{layer}", value)
        delta = cut
    return delta


def _named(guards: Sequence[Guard]) -> list[tuple[str, Guard]]:
    """Guards under their class's name; a second one of a class gets its place as well."""
    names = [type(guard).__name__ for guard in guards]
    return [(f"{n}_{i}" if n in names[:i] else n, guard) for i, (n, guard) in enumerate(zip(names, guards, strict=True))]


def within_budget(layer: int, change_OI: Tensor, original_OI: Tensor, limit: float | None) -> float:
    r"""Let a change pass that is no larger than allowed: :math:`\|\Delta\|_F \le \text{limit} \cdot \|W_0\|_F`.

    Args:
        layer: index of the transformer block.
        change_OI: the change of a whole batch.
        original_OI: the unedited weight.
        limit: the largest change as a multiple of the original norm; ``None`` for no limit.

    Returns:
        The norm of the change.

    Raises:
        Rejected: if it is larger.
    """
    norm, size = float(change_OI.double().norm()), float(original_OI.norm())
    share = norm / size if size else math.inf if norm else 0.0
    if limit is not None and share > limit:
        allowed = f"over the budget of {limit:g}"
        raise Rejected(f"the change of layer {layer} is {share:.3g} times its original norm, {allowed}")
    return norm
