"""What an edit's loss asks of the down-projections: their inputs, and the gradient at their outputs, token by token.

Legend: R = rows, T = kept tokens, P = answer tokens, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.micro_batches import halving
from lit_edit.passes.forward import logits_at
from lit_edit.prompts import Row, right_pad


@dataclass(frozen=True)
class Captured:
    r"""Tokens of one layer, float32: the gradient of its weight is :math:`\sum_t g_t x_t^T`."""

    inputs_TI: Tensor
    gradients_TO: Tensor

    def to(self, device: torch.device) -> Captured:
        """The same on another device."""
        return Captured(self.inputs_TI.to(device), self.gradients_TO.to(device))


@dataclass(frozen=True)
class Answers:
    """Rows ready to be scored at their answers."""

    inputs: dict[str, Tensor]
    """Token ids and mask, ``[rows, positions]``."""
    row_P: Tensor
    column_P: Tensor
    label_P: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], pad: int, device: torch.device) -> Answers:
        """Pad rows on the right and list their answer tokens."""
        picks = [(index, column, label) for index, row in enumerate(rows) for column, label in row.labels]
        row_P, column_P, label_P = (torch.tensor(part, device=device) for part in zip(*picks, strict=True))
        return cls(right_pad([row.ids for row in rows], pad, device), row_P, column_P, label_P)

    def losses(self, anatomy: Anatomy) -> Tensor:
        """Negative log-likelihood of every answer token, teacher-forced, ``[P]``."""
        log_p = logits_at(anatomy, self.inputs, self.row_P, self.column_P).log_softmax(-1)
        return -log_p.gather(1, self.label_P[:, None])[:, 0]


def capture(
    anatomy: Anatomy, rows: Sequence[Row], layers: Sequence[int], pad: int, answers_only: bool
) -> tuple[dict[int, Captured], float]:
    """One forward and one backward pass: inputs and output gradients of the down-projections.

    The loss is the mean negative log-likelihood over all answer tokens of the rows. Where memory does not suffice, halves of
    the rows run one after another; their gradients are still those of that one loss.

    Args:
        anatomy: the model; no parameter needs a gradient.
        rows: prompts with their answers.
        layers: blocks to look at.
        pad: token id for padding.
        answers_only: keep the positions that predict an answer token; otherwise every position that is not padding.

    Returns:
        Tokens by layer, row after row, and the loss.

    Raises:
        OutOfMemory: if a single row is too large.
    """
    total = sum(len(row.labels) for row in rows)
    parts = halving(
        list(range(len(rows))),
        lambda some: _capture(anatomy, [rows[at] for at in some], layers, pad, answers_only, total),
        "the gradients of one request",
    )
    if len(parts) == 1:
        return parts[0][1]
    captured = {
        layer: Captured(
            torch.cat([found[layer].inputs_TI for _, (found, _) in parts]),
            torch.cat([found[layer].gradients_TO for _, (found, _) in parts]),
        )
        for layer in layers
    }
    return captured, sum(loss for _, (_, loss) in parts)


def _capture(
    anatomy: Anatomy, rows: Sequence[Row], layers: Sequence[int], pad: int, answers_only: bool, total: int
) -> tuple[dict[int, Captured], float]:
    """See :func:`capture`; of some rows of a loss over ``total`` answer tokens."""
    answers = Answers.of(rows, pad, anatomy.device)
    shape = answers.inputs["input_ids"].shape
    kept = answers.inputs["attention_mask"].bool()
    if answers_only:
        kept = torch.zeros_like(kept)
        kept[answers.row_P, answers.column_P] = True
    inputs: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}
    with ExitStack() as stack, torch.enable_grad():
        for layer in layers:
            stack.enter_context(_probing(anatomy.down(layer), layer, inputs, probes))
        loss = answers.losses(anatomy).mean() * (len(answers.label_P) / total)
        found = torch.autograd.grad(loss, [probes[layer] for layer in layers])
    captured = {}
    for layer, gradient in zip(layers, found, strict=True):
        x, g = (part.reshape(*shape, -1)[kept].float() for part in (inputs[layer], gradient))
        captured[layer] = Captured(x, g)
    return captured, float(loss.detach())


@contextmanager
def _probing(module: nn.Module, layer: int, inputs: dict[int, Tensor], probes: dict[int, Tensor]) -> Iterator[None]:
    """Add zeros to a module's output whose gradient is the output's."""

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs[layer] = args[0].detach()
        probes[layer] = torch.zeros_like(output, requires_grad=True)
        return output + probes[layer]

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
