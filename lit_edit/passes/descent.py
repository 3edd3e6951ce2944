"""Gradient descent on a few parameters of a model that itself stays as it is.

Legend: R = rows, P = answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_edit.anatomy import Anatomy
from lit_edit.delta import is_finite
from lit_edit.errors import EditError
from lit_edit.micro_batches import Room, halving
from lit_edit.passes.gradients import Answers
from lit_edit.prompts import Row

Shares = Callable[[Sequence[Row]], list[float]]
"""What every answer token of a mini-batch counts in its loss, token after token."""


@dataclass(frozen=True)
class DescentOptions:
    """How parameters are trained. Defaults are those of the fine-tuning baselines of ROME, MEMIT and AlphaEdit."""

    steps: int = 25
    """Most passes over all mini-batches."""
    lr: float = 5e-4
    """Adam's learning rate (its other constants are torch's defaults)."""
    minibatch: int = 64
    """Rows per update."""
    enough: float = 1e-2
    """A mini-batch whose loss is below is skipped; training ends once the mean over all rows is."""
    weight_decay: float = 0.0
    """Adam's L2 penalty."""
    epsilon: float | None = None
    """Largest change of any single number; ``None`` for no limit."""


def mean_of_rows(rows: Sequence[Row]) -> list[float]:
    r"""Shares under which the loss is :math:`\frac1R \sum_r \frac{1}{P_r} \sum_j`: every row counts the same."""
    return [1 / (len(rows) * len(row.labels)) for row in rows for _ in row.labels]


def mean_of_tokens(rows: Sequence[Row]) -> list[float]:
    r"""Shares under which the loss is :math:`\frac1P \sum_j`: every answer token counts the same, long answers more."""
    count = sum(len(row.labels) for row in rows)
    return [1 / count] * count


def descend(
    anatomy: Anatomy,
    parameters: Mapping[str, Tensor],
    rows: Sequence[Row],
    pad: int,
    options: DescentOptions,
    shares: Shares = mean_of_rows,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, Tensor]:
    r"""Minimise :math:`-\sum_j s_j \log p(t_j)` over answer tokens with Adam.

    The parameters are float32 copies; the model sees casts of them for the time of a forward pass, and no parameter of its
    own is touched, whatever happens. Where memory does not suffice for a mini-batch, the gradients of its halves are added up.

    Args:
        anatomy: the model.
        parameters: where to start from, by parameter name and as the model stores them (GPT-2's ``Conv1D``: transposed).
        rows: prompts with their answers, in the order of the mini-batches.
        pad: token id for padding.
        options: length of the training, learning rate, limits.
        shares: the ``s`` of a mini-batch.
        on_epoch: told after every epoch its number (from 0) and mean loss, both as they were before the updates.

    Returns:
        The trained parameters, float32.

    Raises:
        EditError: if a loss or a gradient is not finite.
        OutOfMemory: if a single row is too large.
    """
    leaves = {name: value.detach().float().clone().requires_grad_() for name, value in parameters.items()}
    start = {name: value.detach().clone() for name, value in leaves.items()}
    dtypes = {name: value.dtype for name, value in anatomy.model.named_parameters() if name in leaves}
    adam = torch.optim.Adam(leaves.values(), lr=options.lr, weight_decay=options.weight_decay)
    scored, room = _Scored(anatomy), Room()
    portions = []
    for at in range(0, len(rows), options.minibatch):
        some = rows[at : at + options.minibatch]
        portions.append(_Portion.of(some, shares(some), pad, anatomy.device))

    def run(whole: _Portion, items: list[int]) -> tuple[float, list[Tensor]]:
        """Loss and gradients of some rows; without the gradients of a whole mini-batch whose loss is small enough."""
        portion = whole.only(items, pad)
        with torch.enable_grad():
            shown = {f"model.{name}": leaf.to(dtypes[name]) for name, leaf in leaves.items()}
            loss = (portion.share_P * functional_call(scored, shown, (portion.answers,))).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise EditError(f"the loss of the fine-tuning is {value:g} in epoch {epoch + 1}; use a smaller learning rate")
        if portion is whole and value < options.enough:
            return value, []
        return value, list(torch.autograd.grad(loss, list(leaves.values())))

    for epoch in range(options.steps):
        total = 0.0
        for portion in portions:
            parts = halving(list(range(len(portion.rows))), partial(run, portion), "the loss of one request", room=room)
            value = sum(value for _, (value, _) in parts)
            total += value * len(portion.rows)
            if value >= options.enough:
                for index, (name, leaf) in enumerate(leaves.items()):
                    first, *others = (gradients[index] for _, (_, gradients) in parts)
                    leaf.grad = sum(others, first)
                    if not is_finite(leaf.grad):
                        raise EditError(f"the gradient of {name} is not finite in epoch {epoch + 1} of the fine-tuning")
                adam.step()
            if options.epsilon is not None:
                _confine(leaves, start, options.epsilon)
        on_epoch(epoch, total / len(rows))
        if total / len(rows) < options.enough:
            break
    return {name: leaf.detach() for name, leaf in leaves.items()}


@dataclass(frozen=True)
class _Portion:
    """A mini-batch on the device."""

    rows: Sequence[Row]
    shares: Sequence[float]
    answers: Answers
    share_P: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], shares: Sequence[float], pad: int, device: torch.device) -> _Portion:
        """From its rows and what their answer tokens count."""
        return cls(rows, shares, Answers.of(rows, pad, device), torch.tensor(shares, device=device))

    def only(self, items: Sequence[int], pad: int) -> _Portion:
        """Some of its rows, whose answer tokens count what they do in the whole."""
        if len(items) == len(self.rows):
            return self
        ends = list(accumulate((len(row.labels) for row in self.rows), initial=0))
        shares = [share for at in items for share in self.shares[ends[at] : ends[at + 1]]]
        return _Portion.of([self.rows[at] for at in items], shares, pad, self.share_P.device)


@torch.no_grad()
def _confine(leaves: Mapping[str, Tensor], start: Mapping[str, Tensor], epsilon: float) -> None:
    for name, leaf in leaves.items():
        leaf.clamp_(start[name] - epsilon, start[name] + epsilon)


class _Scored(nn.Module):
    """A model's losses as a module, so that its parameters can be exchanged for one call."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self.anatomy = anatomy
        self.model = anatomy.model

    def forward(self, answers: Answers) -> Tensor:
        """Negative log-likelihood of every answer token, ``[P]``."""
        return answers.losses(self.anatomy)
