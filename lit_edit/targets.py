"""What the layers should write: batched optimisation of target values at the subject's last token.

Legend: N = requests, R = rows (1 + contexts per request), K = KL rows (one per request), T = positions, D = hidden size,
P = target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.forward import block_outputs, logits_at, starting_after
from lit_edit.prompts import EditRows, right_pad


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
    """Requests optimised together: memory against speed; the result does not depend on it beyond rounding."""

    def __post_init__(self) -> None:
        for name in ("steps", "requests_at_once"):
            if getattr(self, name) < 1:
                raise EditError(f"--model.targets.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.context_lengths or min(self.context_lengths) < 1:
            raise EditError(f"--model.targets.context_tokens is {self.context_tokens}; a context has at least 1 token")
        for name in ("lr", "clamp"):
            if not getattr(self, name) > 0:
                raise EditError(f"--model.targets.{name} is {getattr(self, name):g}; it must be positive")
        for name in ("weight_decay", "kl_factor", "contexts"):
            if getattr(self, name) < 0:
                raise EditError(f"--model.targets.{name} is {getattr(self, name):g}; it must not be negative")
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


@dataclass(frozen=True)
class _Problem:
    """Tensors of the requests that are still being optimised. Rewriting rows come first, KL rows after them."""

    requests_N: Tensor  # indices into the batch
    inputs: dict[str, Tensor]
    hidden_RTD: Tensor  # output of the target layer without any change
    subject_R: Tensor
    owner_R: Tensor  # request (0..n-1) of a row
    pick_row_P: Tensor
    pick_column_P: Tensor
    label_P: Tensor
    share_P: Tensor  # 1 / target tokens of the row
    row_share_P: Tensor  # 1 / rows of the request
    rewriting: int  # number of rewriting rows
    initial_KV: Tensor | None  # log-probabilities behind the subject, before the edit

    def only(self, keep_N: Tensor) -> _Problem:
        """The same problem without the requests (mask ``[n]``) that are done."""
        rows = keep_N[self.owner_R]
        new_row = rows.cumsum(0) - 1
        new_owner = keep_N.cumsum(0) - 1
        picks = rows[self.pick_row_P]
        return _Problem(
            requests_N=self.requests_N[keep_N],
            inputs={name: value[rows] for name, value in self.inputs.items()},
            hidden_RTD=self.hidden_RTD[rows],
            subject_R=self.subject_R[rows],
            owner_R=new_owner[self.owner_R[rows]],
            pick_row_P=new_row[self.pick_row_P[picks]],
            pick_column_P=self.pick_column_P[picks],
            label_P=self.label_P[picks],
            share_P=self.share_P[picks],
            row_share_P=self.row_share_P[picks],
            rewriting=int(rows[: self.rewriting].sum()),
            initial_KV=None if self.initial_KV is None else self.initial_KV[keep_N],
        )


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
) -> Targets:
    r"""Find the values at the subject's last token that make the model give the new answers.

    Per request, with ``J`` rows of target tokens :math:`t`, Adam minimises over :math:`\delta` (added to the output of block
    ``layer`` at the subject's last token of every row)

    .. math::
        \frac1J \sum_j -\frac{1}{|t|} \sum_i \log p_\delta(t_i)
        + \beta\, \mathrm{KL}(p_\delta \,\|\, p_0)_{\text{subject}}
        + \gamma \|\delta\| / \|z_0\|^2, \qquad \|\delta\| \le c \|z_0\|

    All requests run at once: losses are summed, Adam is element-wise, stop and clamp are per request, so the trajectories are
    those of one request at a time. Only the blocks above ``layer`` run, and logits are formed at target positions only.

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

    Returns:
        Targets of all requests in the order given.
    """
    size = options.requests_at_once
    parts = []
    for at in range(0, len(requests), size):
        origin = None if origin_ND is None else origin_ND[at : at + size]
        extra = _Extra(at, on_step, origin, confine, stop)
        parts.append(_optimise_some(anatomy, requests[at : at + size], layer, options, pad, extra))
    return Targets(*(torch.cat([getattr(part, name) for part in parts]) for name in Targets.__dataclass_fields__))


@dataclass(frozen=True)
class _Extra:
    """What only some callers of :func:`optimise` give; see there."""

    offset: int
    """Index in the batch of the first request."""
    on_step: Callable[[Step], None] | None
    origin_ND: Tensor | None
    confine: Callable[[Tensor], Tensor] | None
    stop: StopRule | None


def _optimise_some(
    anatomy: Anatomy, requests: Sequence[EditRows], layer: int, options: TargetOptions, pad: int, extra: _Extra
) -> Targets:
    with torch.no_grad():
        problem = _pose(anatomy, requests, layer, pad)
        rows_before = [sum(len(r.rewriting) for r in requests[:i]) for i in range(len(requests))]
        bare = torch.tensor(rows_before, device=anatomy.device)
        z0 = problem.hidden_RTD[bare, problem.subject_R[bare]].float() if extra.origin_ND is None else extra.origin_ND.float()
    final = Targets(z0.clone(), z0, z0.new_zeros(len(requests)), z0.new_zeros(len(requests)))
    z0_norm = z0.norm(dim=1)
    delta = torch.zeros_like(z0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.lr)
    running = torch.ones(len(requests), dtype=torch.bool, device=z0.device)

    for step in range(options.steps):
        with torch.enable_grad():
            current = delta[problem.requests_N]
            seen = _losses(anatomy, problem, current, layer)
            if problem.initial_KV is None:
                problem = replace(problem, initial_KV=seen.behind_KV.detach())
            assert problem.initial_KV is not None
            nll = seen.nll_N
            kl = options.kl_factor * (seen.behind_KV.exp() * (seen.behind_KV - problem.initial_KV)).sum(-1)
            decay = options.weight_decay * current.norm(dim=1) / z0_norm[problem.requests_N].square()
            total = nll + kl + decay
            loss = total.sum()  # summed, not averaged: every request keeps the gradient it has alone
        alive = running[problem.requests_N]
        taking_part = problem.requests_N[alive]
        parts = (current, total, nll, kl, decay, seen.probability_N, seen.tokens_N, seen.hits_N)
        # Indexing by a mask has copied: the leaf is updated in place right after.
        shown = Step(taking_part + extra.offset, *(part.detach()[alive] for part in parts))
        if extra.on_step is not None:
            extra.on_step(shown)
        final.loss_N[taking_part] = shown.total
        final.probability_N[taking_part] = shown.probability
        done = shown.total < options.stop_loss
        if extra.stop is not None:
            done |= extra.stop(shown)
        running[taking_part[done]] = False
        if step == options.steps - 1 or not bool(running.any()):
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
        alive = running[problem.requests_N]
        if int(alive.sum()) < 0.75 * len(alive):
            problem = problem.only(alive)
    final.values_ND.add_(delta.detach())
    return final


def _pose(anatomy: Anatomy, requests: Sequence[EditRows], layer: int, pad: int) -> _Problem:
    device = anatomy.device
    rewriting = [(owner, row) for owner, request in enumerate(requests) for row in request.rewriting]
    kl = [(owner, request.kl) for owner, request in enumerate(requests)]
    rows = [*rewriting, *kl]
    inputs = right_pad([row.ids for _, row in rows], pad, device)
    picks = [
        (index, column, label, 1 / len(row.labels), 1 / len(requests[owner].rewriting))
        for index, (owner, row) in enumerate(rewriting)
        for column, label in row.labels
    ]
    row_P, column_P, label_P, share_P, row_share_P = (torch.tensor(part, device=device) for part in zip(*picks, strict=True))
    return _Problem(
        requests_N=torch.arange(len(requests), device=device),
        inputs=inputs,
        hidden_RTD=block_outputs(anatomy, inputs, layer),
        subject_R=torch.tensor([row.subject for _, row in rows], device=device),
        owner_R=torch.tensor([owner for owner, _ in rows], device=device),
        pick_row_P=row_P,
        pick_column_P=column_P,
        label_P=label_P,
        share_P=share_P,
        row_share_P=row_share_P,
        rewriting=len(rewriting),
        initial_KV=None,
    )


@dataclass(frozen=True)
class _Seen:
    """What one forward pass gives, per request still in the problem."""

    nll_N: Tensor
    probability_N: Tensor
    tokens_N: Tensor
    hits_N: Tensor
    behind_KV: Tensor
    """Log-probabilities behind the subject of the KL rows."""


def _losses(anatomy: Anatomy, problem: _Problem, delta_ND: Tensor, layer: int) -> _Seen:
    count = len(delta_ND)
    all_rows = torch.arange(len(problem.owner_R), device=delta_ND.device)
    added = delta_ND[problem.owner_R].to(problem.hidden_RTD.dtype)
    hidden = problem.hidden_RTD.index_put((all_rows, problem.subject_R), added, accumulate=True)
    kl_rows = all_rows[problem.rewriting :]
    with starting_after(anatomy, layer, hidden):
        logits = logits_at(
            anatomy,
            problem.inputs,
            torch.cat([problem.pick_row_P, kl_rows]),
            torch.cat([problem.pick_column_P, problem.subject_R[kl_rows]]),
        )
    log_p = logits.log_softmax(-1)
    picked = len(problem.label_P)
    log_target = log_p[:picked].gather(1, problem.label_P[:, None])[:, 0]
    owner_P = problem.owner_R[problem.pick_row_P]
    nll = delta_ND.new_zeros(count).index_add(0, owner_P, -log_target * problem.share_P * problem.row_share_P)
    # exp of a row's mean log-probability, then the mean over rows: the figure the released code prints.
    row_nll = delta_ND.new_zeros(problem.rewriting).index_add(0, problem.pick_row_P, -log_target * problem.share_P)
    owners = problem.owner_R[: problem.rewriting]
    rows_of = delta_ND.new_zeros(count).index_add(0, owners, torch.ones_like(row_nll))
    probability = delta_ND.new_zeros(count).index_add(0, owners, (-row_nll).exp()) / rows_of
    # A row counts as a context if it is not its request's first one; without contexts the bare row has to do.
    first_R = torch.ones_like(owners, dtype=torch.bool)
    first_R[1:] = owners[1:] != owners[:-1]
    counted = (~first_R[problem.pick_row_P] | (rows_of[owner_P] == 1)).to(nll)
    with torch.no_grad():
        right = (log_p[:picked].argmax(-1) == problem.label_P).to(nll)
        tokens = torch.zeros_like(nll).index_add(0, owner_P, counted)
        hits = torch.zeros_like(nll).index_add(0, owner_P, counted * right)
    return _Seen(nll, probability, tokens, hits, log_p[picked:])
