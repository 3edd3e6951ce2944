"""The run's own forward and backward passes, over tensors that are shapes only, to see what they hold.

Legend: N = requests, R = rows, S = positions from the subject's last token on, P = positions before it, U = positions whose
logits are wanted, V = vocabulary, D = hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_edit.passes.forward import logits_at, run_until
from lit_edit.passes.gradients import _probing
from lit_edit.passes.suffix import Suffixes
from lit_edit.passes.target_rows import Problem, _Spots
from lit_edit.plan.meter import Kept, Live, keeping
from lit_edit.plan.network import Network


@dataclass(frozen=True)
class TargetShape:
    """One part of a target optimisation, as shapes; what :meth:`lit_edit.passes.target_rows.Problem.pose` would make of it."""

    requests: int
    rows: int
    rewriting: int
    """Rows with an answer; they come first."""
    suffix: int
    """S: positions of the longest row from the subject's last token on."""
    prefix: int
    """P: positions of the longest beginning, of which attention keys and values are kept; 0 where rows run whole."""
    picks: int
    """Answer tokens of all rows."""
    spots: int
    """U: distinct positions whose logits are wanted."""

    def halved(self) -> TargetShape:
        """The larger half of it, where memory asks for halves."""
        requests = -(-self.requests // 2)

        def part(count: int) -> int:
            return max(1, round(count * requests / self.requests))

        return replace(
            self,
            requests=requests,
            rows=part(self.rows),
            rewriting=part(self.rewriting),
            picks=part(self.picks),
            spots=part(self.spots),
        )


@dataclass(frozen=True)
class Held:
    """Bytes of tensors that a pass makes."""

    kept: int
    """What the forward pass keeps for the backward pass, as ``--model.targets.memory`` counts it."""
    peak: int
    """The most that is held at once, everything the pass starts from included."""
    logits: int
    """Of these, logits in float32: one table ``[U, V]``."""


def target_step(network: Network, shape: TargetShape, layer: int) -> Held:
    """One step of the target optimisation: the run's own forward pass, loss and backward pass, over shapes.

    Args:
        network: the model.
        shape: the part.
        layer: block whose output is changed.
    """
    with _measured(network) as (live, kept):
        posed = _problem(network, shape, layer)
        delta = torch.zeros(shape.requests, network.anatomy.d_model, requires_grad=True)
        seen = posed.run(network.anatomy, delta, layer)
        start = seen.behind_NV.detach()
        divergence = (seen.behind_NV.exp() * (seen.behind_NV - start)).sum(-1)
        loss = (seen.nll_N + divergence + delta.norm(dim=1)).sum()
        loss.backward()
    return Held(kept.bytes, live.peak, 4 * shape.spots * network.anatomy.vocabulary)


def _problem(network: Network, shape: TargetShape, layer: int) -> Problem:
    anatomy = network.anatomy
    rows, blocks = shape.rows, len(anatomy.blocks)

    def index(*size: int) -> Tensor:
        return torch.zeros(*size, dtype=torch.long)

    hidden = torch.zeros(rows, shape.suffix, anatomy.d_model, dtype=anatomy.dtype)
    ids = {"input_ids": index(rows, shape.suffix), "attention_mask": index(rows, shape.prefix + shape.suffix)}
    past = None
    if shape.prefix:
        ids["position_ids"] = index(rows, shape.suffix)
        past = _past(network, rows, shape.prefix, range(layer + 1, blocks), blocks)
        if "position_ids" not in inspect.signature(anatomy.model.forward).parameters:
            del ids["position_ids"]
    return Problem(
        requests_N=torch.arange(shape.requests),
        rows=Suffixes(ids, hidden, index(rows), past, anatomy.cache_argument),
        subject_R=index(rows),
        owner_R=index(rows),
        pick_row_P=index(shape.picks),
        pick_column_P=index(shape.picks),
        spots=_Spots(index(shape.spots), index(shape.spots), index(shape.picks + shape.requests)),
        label_P=index(shape.picks),
        share_P=torch.zeros(shape.picks),
        row_share_P=torch.zeros(shape.picks),
        rewriting=shape.rewriting,
        behind_N=index(shape.requests),
    )


def _past(network: Network, rows: int, length: int, run: range, blocks: int) -> Any:
    """Attention keys and values; blocks that are not run have a stand-in of one head without width, as in a run."""
    from transformers import DynamicCache

    heads, width = network.heads
    past = DynamicCache()
    for block in range(blocks):
        size = (rows, heads, length, width) if block in run else (rows, 1, length, 1)
        keys, values = (torch.zeros(size, dtype=network.anatomy.dtype) for _ in range(2))
        past.update(keys, values, block)
    return past


def forward(network: Network, rows: int, columns: int, spots: int, last: int | None = None, packed: bool = False) -> int:
    """Peak bytes of a forward pass without gradients, its logits included.

    Args:
        network: the model.
        rows: lines of the pass.
        columns: positions of a line.
        spots: positions whose logits are wanted; none are formed if ``last`` is given.
        last: block after which the pass is left.
        packed: whether rows share lines, which takes a mask of its own for every line.
    """
    anatomy = network.anatomy
    with _measured(network, grad=False) as (live, _):
        inputs: dict[str, Tensor] = {"input_ids": torch.zeros(rows, columns, dtype=torch.long)}
        if packed:
            inputs["position_ids"] = torch.zeros(rows, columns, dtype=torch.long)
            inputs["attention_mask"] = torch.zeros(rows, 1, columns, columns, dtype=anatomy.dtype)
        else:
            inputs["attention_mask"] = torch.ones(rows, columns, dtype=torch.long)
        if last is not None:
            run_until(anatomy, anatomy.blocks[last], inputs)
        else:
            places = torch.zeros(spots, dtype=torch.long)
            logits = logits_at(anatomy, inputs, places, places)
            logits.max(-1)
            logits.exp_().sum(-1).log()
    return live.peak


def gradients(network: Network, rows: int, columns: int, spots: int, layers: tuple[int, ...]) -> Held:
    """A forward and a backward pass through the outputs of the down-projections, for editors that take gradients.

    Args:
        network: the model.
        rows: rows of the pass.
        columns: positions of a row.
        spots: answer tokens.
        layers: edited blocks.
    """
    anatomy = network.anatomy
    inputs: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}
    with _measured(network) as (live, kept), ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_probing(anatomy.down(layer), layer, inputs, probes))
        ids = torch.zeros(rows, columns, dtype=torch.long)
        places = torch.zeros(spots, dtype=torch.long)
        logits = logits_at(anatomy, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, places, places)
        loss = logits.log_softmax(-1).gather(1, places[:, None]).mean()
        torch.autograd.grad(loss, [probes[layer] for layer in layers])
        held = live.peak
    return Held(kept.bytes, held, 4 * spots * anatomy.vocabulary)


@contextmanager
def _measured(network: Network, grad: bool = True) -> Iterator[tuple[Live, Kept]]:
    with network.mode, torch.set_grad_enabled(grad), Live() as live, keeping() as kept:
        yield live, kept
