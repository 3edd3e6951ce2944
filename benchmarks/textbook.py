r"""MEMIT with REVIVE by the book: the oracle that exactness is tested against, and what speed is compared with.

Everything is done the plain way, as the released implementations of the family do it (Meng et al. 2022, arXiv 2210.07229,
and the sequential editors built on its code):

* *targets*: one request at a time; at every step one forward pass of the whole network over all rows of the request (bare
  prompt, contexts and the KL prompt, padded to the longest) and all positions, logits and log-softmax at every position, one
  Adam per request;
* *keys*: for every edited layer one forward pass of the whole network over all rows of the batch, 128 at a time; current
  values by another one over the bare prompts;
* *solve*: a dense float64 system of size d_in per layer and batch; dense changes, dense projectors.

What the released code does beyond this is left out unless ``as_released`` asks for it: it forms the logits of the rewriting
rows a second time from the last block's output, and those of its editors that remember keys read them once more after the
change, with the same result. Also left out, always: copies of d x d matrices between devices, one synchronisation per
printed number, and the two tokens ``" is a"`` behind the subject of the KL prompt, which change neither the result nor the
padded length.

Ratios of the benchmark are against the plain variant; those against ``as_released`` are reported beside them.

Legend: N = requests, R = rows, T = positions, D = hidden size, V = vocabulary, O = d_out, I = d_in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stopwatch import Stopwatch
from lit_edit.anatomy import Anatomy, hidden_of
from lit_edit.prompts import EditRows, right_pad
from lit_edit.spectrum import Subspace
from lit_edit.targets import TargetOptions


@dataclass(frozen=True)
class Pass:
    """What one forward pass of one request's optimisation saw."""

    delta: Tensor  # [D], at its start
    total: float
    nll: float
    kl: float
    decay: float


@dataclass(frozen=True)
class Target:
    """Result of :func:`target`."""

    value: Tensor  # [D], z* = z0 + delta
    start: Tensor  # [D], z0
    passes: list[Pass] = field(default_factory=list)


def target(
    anatomy: Anatomy, request: EditRows, layer: int, options: TargetOptions, pad: int, as_released: bool = False
) -> Target:
    r"""What the output of block ``layer`` should be at the subject of one request; see :func:`lit_edit.targets.optimise`.

    Args:
        anatomy: the model, in evaluation mode, its parameters without gradients.
        request: its rows.
        layer: block whose output is changed.
        options: of the optimisation.
        pad: token id for padding.
        as_released: form the logits of the rewriting rows a second time from the last block's output.
    """
    rows = [*request.rewriting, request.kl]
    inputs = right_pad([row.ids for row in rows], pad, anatomy.device)
    subjects = [row.subject for row in rows]
    labels_RT = torch.full_like(inputs["input_ids"][:-1], -100)
    for index, row in enumerate(request.rewriting):
        for column, label in row.labels:
            labels_RT[index, column] = label
    mask_RT = labels_RT != -100

    dtype = torch.promote_types(anatomy.dtype, torch.float32)
    delta = torch.zeros(anatomy.d_model, dtype=dtype, device=anatomy.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.lr)
    start: list[Tensor] = []
    last: list[Tensor] = []
    initial_V: Tensor | None = None
    passes: list[Pass] = []

    def add(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = hidden_of(output)
        if not start:
            start.append(hidden[0, subjects[0]].detach().to(dtype, copy=True))
        changed = hidden.clone()
        for index, column in enumerate(subjects):
            changed[index, column] += delta.to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handles = [anatomy.blocks[layer].register_forward_hook(add)]
    if as_released:
        handles.append(anatomy.blocks[-1].register_forward_hook(lambda *seen: last.append(hidden_of(seen[2]))))
    try:
        for step in range(options.steps):
            with torch.enable_grad():
                logits_RTV = anatomy.model(**inputs, use_cache=False).logits.to(dtype)
                behind_V = logits_RTV[-1, subjects[-1]].log_softmax(-1)
                if as_released:
                    norm = anatomy.final_norm
                    states = last.pop()[:-1]
                    logits_RTV = anatomy.head(states if norm is None else norm(states)).to(dtype)
                else:
                    logits_RTV = logits_RTV[:-1]
                log_p_RTV = logits_RTV.log_softmax(-1)
                picked_RT = log_p_RTV.gather(2, labels_RT.clamp_min(0)[..., None])[..., 0]
                nll = (-(picked_RT * mask_RT).sum(1) / mask_RT.sum(1)).mean()
                if initial_V is None:
                    initial_V = behind_V.detach().clone()
                kl = options.kl_factor * (behind_V.exp() * (behind_V - initial_V)).sum()
                decay = options.weight_decay * delta.norm() / start[0].norm() ** 2
                total = nll + kl + decay
            passes.append(Pass(delta.detach().clone(), *(float(part.detach()) for part in (total, nll, kl, decay))))
            if passes[-1].total < options.stop_loss or step == options.steps - 1:
                break
            adam.zero_grad()
            total.backward()
            adam.step()
            with torch.no_grad():
                largest = options.clamp * start[0].norm()
                if delta.norm() > largest:
                    delta.mul_(largest / delta.norm())
    finally:
        for handle in handles:
            handle.remove()
    return Target(start[0] + delta.detach(), start[0], passes)


@torch.no_grad()
def keys(anatomy: Anatomy, requests: Sequence[EditRows], layer: int, pad: int, rows_at_once: int = 128) -> Tensor:
    """Keys of a layer ``[n, d_in]``: half the bare prompt's, half the mean over the contexts'."""
    rows = [row for request in requests for row in request.rewriting]
    found = _at_subjects(anatomy, rows, anatomy.down(layer), pad, rows_at_once, of_input=True)
    keys_NJI = found.view(len(requests), -1, found.shape[-1])
    if keys_NJI.shape[1] == 1:
        return keys_NJI[:, 0]
    return (keys_NJI[:, 0] + keys_NJI[:, 1:].mean(1)) / 2


@torch.no_grad()
def values(anatomy: Anatomy, requests: Sequence[EditRows], layer: int, pad: int, rows_at_once: int = 128) -> Tensor:
    """Output of block ``layer`` at the subjects of the bare prompts, ``[n, hidden]``."""
    rows = [request.rewriting[0] for request in requests]
    return _at_subjects(anatomy, rows, anatomy.blocks[layer], pad, rows_at_once, of_input=False)


def _at_subjects(
    anatomy: Anatomy, rows: Sequence[Any], module: nn.Module, pad: int, rows_at_once: int, of_input: bool
) -> Tensor:
    """What a module reads or puts out at the subjects of whole prompts (without answers), by whole forward passes."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(args[0] if of_input else hidden_of(output))

    for at in range(0, len(rows), rows_at_once):
        some = rows[at : at + rows_at_once]
        inputs = right_pad([row.ids[: row.labels[0][0] + 1] for row in some], pad, anatomy.device)
        seen: list[Tensor] = []
        handle = module.register_forward_hook(keep)
        try:
            anatomy.model(**inputs, use_cache=False)
        finally:
            handle.remove()
        # Some families (OPT) flatten rows and positions before the MLP.
        states = seen[0].reshape(*inputs["input_ids"].shape, -1)
        found.append(torch.stack([states[index, row.subject] for index, row in enumerate(some)]))
    return torch.cat(found).to(torch.promote_types(anatomy.dtype, torch.float32))


def solve(moment_II: Tensor, lam: float, keys_NI: Tensor, residuals_NO: Tensor, earlier_II: Tensor | None = None) -> Tensor:
    r""":math:`R K^T (\lambda C + H H^T + K K^T)^{-1}` as one dense float64 system, ``[d_out, d_in]``.

    Args:
        moment_II: mean second moment ``C``.
        lam: its weight.
        keys_NI: keys of the batch.
        residuals_NO: what each key should write in addition.
        earlier_II: sum ``H H^T`` over the keys of earlier batches, where the editor remembers them.
    """
    keys_IN = keys_NI.double().T
    system_II = lam * moment_II.double() + keys_IN @ keys_IN.T
    if earlier_II is not None:
        system_II += earlier_II
    return residuals_NO.double().T @ torch.linalg.solve(system_II, keys_IN).T


def project(delta_OI: Tensor, protected: Subspace) -> Tensor:
    r""":math:`(I - U U^T)\,\Delta\,(I - V V^T)` with dense projectors (REVIVE, arXiv 2601.11042)."""
    left, right = protected.left.to(delta_OI), protected.right.to(delta_OI)
    left_OO = torch.eye(len(left), dtype=delta_OI.dtype, device=delta_OI.device) - left @ left.T
    right_II = torch.eye(len(right), dtype=delta_OI.dtype, device=delta_OI.device) - right @ right.T
    return left_OO @ delta_OI @ right_II


@dataclass(frozen=True)
class Batch:
    """Result of :func:`edit`."""

    deltas: dict[int, Tensor]  # [O, I] by layer, in the dtype of the weights
    keys: dict[int, Tensor]  # [N, I] by layer
    targets: Tensor  # [N, D]


@torch.no_grad()
def edit(
    anatomy: Anatomy,
    requests: Sequence[EditRows],
    layers: Sequence[int],
    moments: Mapping[int, Tensor],
    lam: float,
    options: TargetOptions,
    pad: int,
    protected: Mapping[int, Subspace] | None = None,
    earlier: Mapping[int, Tensor] | None = None,
    targets_ND: Tensor | None = None,
    as_released: bool = False,
    watch: Stopwatch | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Batch:
    """One batch of MEMIT with REVIVE; the model is left as it was.

    Args:
        anatomy: the model, in evaluation mode, its parameters without gradients.
        requests: rows of every request.
        layers: edited blocks, ascending; targets are optimised at the last one.
        moments: mean second moment ``[d_in, d_in]`` of every layer.
        lam: its weight.
        options: of the target optimisation.
        pad: token id for padding.
        protected: dominant directions that REVIVE protects, by layer; ``None`` for no guard.
        earlier: ``H H^T`` of every layer, where keys of earlier batches are remembered.
        targets_ND: targets, where they are known already.
        as_released: with what the released code computes twice.
        watch: told the seconds of ``targets``, ``keys``, ``solve``, ``guard`` and ``write``.
        tell: told how many targets are done.
    """
    watch = Stopwatch() if watch is None else watch
    if targets_ND is None:
        found = []
        for request in requests:
            with watch.part("targets"):
                found.append(target(anatomy, request, layers[-1], options, pad, as_released).value)
            tell(len(found))
        targets_ND = torch.stack(found)
    before = {layer: anatomy.weight(layer).clone() for layer in layers}
    deltas: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}
    try:
        for index, layer in enumerate(layers):
            with watch.part("keys"):
                read[layer] = keys(anatomy, requests, layer, pad)
                now_ND = values(anatomy, requests, layers[-1], pad)
            residuals = (targets_ND - now_ND) / (len(layers) - index)
            with watch.part("solve"):
                delta = solve(moments[layer], lam, read[layer], residuals, None if earlier is None else earlier[layer])
            if protected is not None:
                with watch.part("guard"):
                    delta = project(delta, protected[layer])
            with watch.part("write"):
                deltas[layer] = delta.to(before[layer])
                anatomy.weight(layer).add_(deltas[layer])
        if as_released:
            for layer in layers:
                with watch.part("keys"):
                    keys(anatomy, requests, layer, pad)
    finally:
        for layer, weight in before.items():
            anatomy.weight(layer).copy_(weight)
    return Batch(deltas, read, targets_ND)
