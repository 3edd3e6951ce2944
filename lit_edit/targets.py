"""What the layers should write: batched optimisation of target values at the subject's last token.

Legend: N = requests, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.micro_batches import by_length, halving, within, worth_a_pass
from lit_edit.passes.forward import at_least_float32
from lit_edit.passes.target_rows import Problem
from lit_edit.prompts import EditRows


@dataclass(frozen=True)
class TargetOptions:
    """How target values are optimised. Defaults are MEMIT's for GPT-J; Llama-3-8B uses ``lr=0.1``, GPT-2-XL ``steps=20``."""

    steps: int = 25
    """Forward passes per request; there is one Adam update fewer."""
    lr: float = 0.5
    """Adam's learning rate."""
    clamp: float = 0.75
    """Largest norm of the change, as a multiple of the norm of the value it changes."""
    weight_decay: float = 0.5
    """Weight of ``||delta|| / ||z0||^2`` (the norm is not squared; the released code wins over the paper here)."""
    kl_factor: float = 0.0625
    """Weight of the divergence of the next-token distribution behind the bare subject."""
    stop_loss: float = 0.05
    """A request is done once its loss falls below this."""
    contexts: int = 5
    """Context templates sampled from the unedited model, besides the bare prompt."""
    context_tokens: int | tuple[int, ...] = 10
    """Length of a sampled context in tokens; several lengths share the contexts evenly, in the order given."""
    context_starts: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
    """Words that sampled contexts start from, used in turn."""
    requests_at_once: int = 32
    """Most requests optimised together; the result does not depend on it beyond rounding. Halved where memory runs out."""
    memory: float | None = None
    """GiB that a forward pass may keep for its backward pass; more halves the requests optimised together."""

    def __post_init__(self) -> None:
        for name in ("steps", "requests_at_once"):
            if getattr(self, name) < 1:
                raise EditError(f"--model.targets.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.context_lengths or min(self.context_lengths) < 1:
            raise EditError(f"--model.targets.context_tokens is {self.context_tokens}; a context has at least 1 token")
        if self.memory is not None and not self.memory > 0:
            raise EditError(f"--model.targets.memory is {self.memory:g}; it is an amount in GiB and must be positive")
        for name in ("lr", "clamp"):
            if not getattr(self, name) > 0:
                raise EditError(f"--model.targets.{name} is {getattr(self, name):g}; it must be positive")
        for name in ("weight_decay", "kl_factor", "contexts"):
            if not getattr(self, name) >= 0:
                raise EditError(f"--model.targets.{name} is {getattr(self, name):g}; it must not be negative")
        if math.isnan(self.stop_loss):
            raise EditError("--model.targets.stop_loss is no number; it is a loss, 0 for none")
        if self.contexts and not self.context_starts:
            raise EditError("--model.targets.context_starts is empty; sampled contexts need a word to start from")

    @property
    def context_lengths(self) -> tuple[int, ...]:
        """:attr:`context_tokens` as a tuple."""
        return (self.context_tokens,) if isinstance(self.context_tokens, int) else tuple(self.context_tokens)


@dataclass(frozen=True)
class Step:
    """What one forward pass of the optimisation saw, for those requests that took part."""

    requests: Tensor  # [n] indices into the batch
    delta_ND: Tensor  # [n, hidden] the change at the start of this pass
    total: Tensor  # [n] = nll + kl + decay
    nll: Tensor  # [n] mean over rows of the mean over target tokens
    kl: Tensor  # [n]
    decay: Tensor  # [n]
    probability: Tensor  # [n] exp(-NLL) of a row, mean over rows
    context_tokens: Tensor  # [n] target tokens of all context rows (of the bare row, where there are no contexts)
    context_hits: Tensor  # [n] how many of them are the argmax


class StopRule(Protocol):
    """Which requests are done, besides those whose loss is small enough. Made anew for every optimisation."""

    def __call__(self, seen: Step) -> Tensor:
        """A mask over ``seen.requests``; these requests are not changed any more."""
        ...


class PredictedFor:
    """Done at the ``patience``-th forward pass in which all target tokens of all context rows are the argmax.

    Args:
        patience: number of such passes; they need not follow each other.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._passes: dict[int, int] = {}

    def __call__(self, seen: Step) -> Tensor:
        """See :class:`StopRule`."""
        return self._count(seen, seen.context_hits == seen.context_tokens)

    def _count(self, seen: Step, right: Tensor) -> Tensor:
        for request, good in zip(seen.requests.tolist(), right.tolist(), strict=True):
            self._passes[request] = self._passes.get(request, 0) + bool(good)
        done = [self._passes[request] >= self.patience for request in seen.requests.tolist()]
        return torch.tensor(done, device=right.device)


@dataclass(frozen=True)
class Targets:
    """Result of :func:`optimise`."""

    values_ND: Tensor
    """Target values ``z* = z0 + delta``, ``[n, hidden]``, float32."""
    start_ND: Tensor
    """Values ``z0`` that the changes were counted from: the bare prompts before the edit, or ``origin_ND``."""
    loss_N: Tensor
    """Loss of each request at its last forward pass."""
    probability_N: Tensor
    """Mean over rows of ``exp(-NLL)`` of the target at that pass."""


def optimise(
    anatomy: Anatomy,
    requests: Sequence[EditRows],
    layer: int,
    options: TargetOptions,
    pad: int,
    on_step: Callable[[Step], None] | None = None,
    origin_ND: Tensor | None = None,
    confine: Callable[[Tensor], Tensor] | None = None,
    stop: StopRule | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> Targets:
    r"""Find the values at the subject's last token that make the model give the new answers.

    Per request, with ``J`` rows of target tokens :math:`t`, Adam minimises over :math:`\delta` (added to the output of block
    ``layer`` at the subject's last token of every row)

    .. math::
        \frac1J \sum_j -\frac{1}{|t|} \sum_i \log p_\delta(t_i)
        + \beta\, \mathrm{KL}(p_\delta \,\|\, p_0)_{\text{subject}}
        + \gamma \|\delta\| / \|z_0\|^2, \qquad \|\delta\| \le c \|z_0\|

    All requests run at once: losses are summed, Adam is element-wise, stop and clamp are per request, so the trajectories are
    those of one request at a time. Only the blocks above ``layer`` run, only from the subject's last token on where the family
    allows it (:func:`lit_edit.passes.suffix.suffixes`), and logits are formed at target positions only.

    Source: ``compute_z`` of the released MEMIT and AlphaEdit code.

    Args:
        anatomy: the model, in evaluation mode, its parameters without gradients.
        requests: rows of every request.
        layer: block whose output is changed (the last edited layer).
        options: see :class:`TargetOptions`.
        pad: token id for padding.
        on_step: shown every forward pass.
        origin_ND: values ``z0`` that the change is counted from, whose norm bounds and scales it, ``[n, hidden]``; default: the
            output of block ``layer`` at the bare prompts. ROME counts from the MLP's output: adding to that output is adding
            to the block's, but the bound is another one.
        confine: applied to the changes ``[n, hidden]`` after every update, before the bound.
        stop: ends requests early.
        parts: which requests are optimised, and which of them together; default: all of them, as :func:`together` says.

    Returns:
        Targets of all requests in the order given, or of those in ``parts`` in the order given there.

    Raises:
        EditError: if no change at the subject can reach an answer.
    """
    if layer == len(anatomy.blocks) - 1:
        for request in requests:
            if all(column != row.subject for row in request.rewriting for column, _ in row.labels):
                raise EditError(
                    f"targets are optimised at block {layer}, the last one, where no attention carries a change at the subject "
                    f"of {request.request.name} to its answer; name lower blocks with --model.layers"
                )

    def some(chunk: list[int]) -> Targets:
        index_N = torch.tensor(chunk, device=anatomy.device)
        origin = None if origin_ND is None else origin_ND[index_N]
        # A rule may keep count of what it was shown: an attempt that memory cuts short must leave no trace in it.
        extra = _Extra(index_N, on_step, origin, confine, copy.deepcopy(stop))
        return _optimise_some(anatomy, [requests[at] for at in chunk], layer, options, pad, extra)

    chosen = together(anatomy, requests, options) if parts is None else [list(part) for part in parts]
    found = [part for chunk in chosen for part in halving(chunk, some, "the target of one request")]
    order = torch.tensor([at for chunk, _ in found for at in chunk], device=anatomy.device)
    back = order.argsort() if parts is None else torch.arange(len(order), device=anatomy.device)
    return Targets(*(torch.cat([getattr(part, name) for _, part in found])[back] for name in Targets.__dataclass_fields__))


def together(anatomy: Anatomy, requests: Sequence[EditRows], options: TargetOptions) -> list[list[int]]:
    """Which requests are optimised together: positions, in parts of like length."""
    rows = 1 + max(len(request.rewriting) for request in requests)
    return by_length([tail(request) for request in requests], rows, options.requests_at_once, worth_a_pass(anatomy.device))


def tail(request: EditRows) -> int:
    """Tokens of a request's longest row from the subject's last one on: what its optimisation runs again and again."""
    return max(len(row.ids) - row.subject for row in request.rewriting)


@dataclass(frozen=True)
class _Extra:
    """What only some callers of :func:`optimise` give; see there."""

    index_N: Tensor
    """Where in the batch the requests stand."""
    on_step: Callable[[Step], None] | None
    origin_ND: Tensor | None
    confine: Callable[[Tensor], Tensor] | None
    stop: StopRule | None


def _optimise_some(
    anatomy: Anatomy, requests: Sequence[EditRows], layer: int, options: TargetOptions, pad: int, extra: _Extra
) -> Targets:
    with torch.no_grad():
        problem = Problem.pose(anatomy, requests, layer, pad)
        z0 = problem.start() if extra.origin_ND is None else at_least_float32(extra.origin_ND)
    initial_NV: Tensor | None = None  # log-probabilities behind the subject before the change
    final = Targets(z0.clone(), z0, z0.new_zeros(len(requests)), z0.new_zeros(len(requests)))
    z0_norm = z0.norm(dim=1)
    delta = torch.zeros_like(z0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.lr)
    running = torch.ones(len(requests), dtype=torch.bool, device=z0.device)

    for step in range(options.steps):
        with torch.enable_grad():
            current = delta[problem.requests_N]
            with within(options.memory if initial_NV is None else None):  # the first pass is the largest
                seen = problem.run(anatomy, current, layer)
            if initial_NV is None:
                initial_NV = seen.behind_NV.detach()
            nll = seen.nll_N
            kl = options.kl_factor * (seen.behind_NV.exp() * (seen.behind_NV - initial_NV)).sum(-1)
            decay = options.weight_decay * current.norm(dim=1) / z0_norm[problem.requests_N].square()
            total = nll + kl + decay
            loss = total.sum()  # summed, not averaged: every request keeps the gradient it has alone
        alive = running[problem.requests_N]
        taking_part = problem.requests_N[alive]
        parts = (current, total, nll, kl, decay, seen.probability_N, seen.tokens_N, seen.hits_N)
        # Indexing by a mask has copied: the leaf is updated in place right after.
        shown = Step(extra.index_N[taking_part], *(part.detach()[alive] for part in parts))
        if extra.on_step is not None:
            extra.on_step(shown)
        final.loss_N[taking_part] = shown.total
        final.probability_N[taking_part] = shown.probability
        done = shown.total < options.stop_loss
        if extra.stop is not None:
            done |= extra.stop(shown)
        running[taking_part[done]] = False
        left = int(running.sum())  # the one number that the device is waited for
        if step == options.steps - 1 or not left:
            break
        adam.zero_grad(set_to_none=False)
        loss.backward()
        with torch.no_grad():
            before = delta.detach().clone()
            adam.step()
            if extra.confine is not None:
                delta.copy_(extra.confine(delta))
            norm = delta.norm(dim=1)
            largest = options.clamp * z0_norm
            scale = torch.where(norm > largest, largest / norm, torch.ones_like(norm))
            delta.mul_(scale[:, None])
            delta.copy_(torch.where(running[:, None], delta, before))
        # Rows of finished requests are dropped once they are a quarter of the work; until then they are just ignored.
        if left < 0.75 * len(problem.requests_N):
            alive = running[problem.requests_N]
            problem, initial_NV = problem.only(alive), initial_NV[alive]
    final.values_ND.add_(delta.detach())
    return final
