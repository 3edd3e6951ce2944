"""Partial forward passes: stop early, start late, read inside, and score only where it matters. All exact.

Legend: B = rows, T = positions, D = hidden size, P = picked positions.

Blocks are never called directly: masks, rotary embeddings, sliding windows, the final norm and the head stay the model's
own. What is not needed is replaced for the time of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy, hidden_of
from lit_edit.micro_batches import enough_memory
from lit_edit.parallel.sharding import given_back


def at_least_float32(value: Tensor) -> Tensor:
    """A value in float32, or in float64 where the model computes in that."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class _Stop(Exception):
    """Raised inside a hook to leave a forward pass that has delivered everything it was run for."""


@contextmanager
def reading(
    module: nn.Module, on_input: Callable[[Tensor], None] | None, on_output: Callable[[Tensor], None] | None
) -> Iterator[None]:
    """Show a module's input or output (hidden states only) to a function during the ``with`` block."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if on_input is not None:
            on_input(args[0] if args else next(iter(kwargs.values())))
        if on_output is not None:
            on_output(hidden_of(output))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def starting_after(anatomy: Anatomy, layer: int, hidden_BTD: Tensor) -> Iterator[None]:
    """Make forward passes in the ``with`` block start from stored hidden states.

    Args:
        anatomy: the model.
        layer: the block whose *output* is given; blocks up to and including it do not run. -1 changes nothing.
        hidden_BTD: that output, ``[rows, positions, hidden]``, for the same token ids that the model is called with.
    """
    wrapped = anatomy.blocks[: layer + 1]

    def give(value: Tensor) -> Callable[..., Any]:
        return lambda *args, **kwargs: (value,) if anatomy.tuple_output else value

    def passing(*args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        return (value,) if anatomy.tuple_output else value

    before = [block.__dict__.get("forward") for block in wrapped]
    try:
        for index, block in enumerate(wrapped):
            block.forward = give(hidden_BTD) if index == layer else passing
        yield
    finally:
        for block, forward in zip(wrapped, before, strict=True):
            # The instance attribute hides the class's method; deleting it gives the method back.
            del block.forward
            if forward is not None:
                block.forward = forward


def run_until(anatomy: Anatomy, module: nn.Module, inputs: dict[str, Any]) -> None:
    """Run the model on ``inputs`` and leave as soon as ``module`` has delivered its output."""

    def stop(*_: Any) -> None:
        raise _Stop

    handle = module.register_forward_hook(stop)
    try:
        anatomy.model(**inputs, use_cache=False)
    except _Stop:
        given_back(anatomy.blocks)
    finally:
        handle.remove()


def block_outputs(anatomy: Anatomy, inputs: dict[str, Tensor], layer: int) -> Tensor:
    """Output of a block, ``[rows, positions, hidden]``, running no further than that block."""
    kept: list[Tensor] = []
    with reading(anatomy.blocks[layer], None, kept.append):
        run_until(anatomy, anatomy.blocks[layer], inputs)
    return kept[0]


def logits_at(anatomy: Anatomy, inputs: dict[str, Any], rows_P: Tensor, columns_P: Tensor) -> Tensor:
    """Logits at picked positions only, ``[picked, vocabulary]``, in float32, through the model's own head.

    The head sees just the picked hidden states, so soft-capping, scaling and biases stay the model's own while a 150k
    vocabulary is never spread over every position.

    Args:
        anatomy: the model.
        inputs: what the model is called with.
        rows_P: row of each picked position.
        columns_P: column of each picked position.
    """

    def pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows_P, columns_P][None], *args[1:])

    handle = anatomy.head.register_forward_pre_hook(pick)
    try:
        output = anatomy.model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return at_least_float32(output.logits[0])


@contextmanager
def last_mlp_at(anatomy: Anatomy, rows_P: Tensor, columns_P: Tensor) -> Iterator[None]:
    """Run the last block's MLP at picked positions only; elsewhere it adds nothing, which nobody reads any more.

    No later block mixes positions, so the final states are those of a whole pass at the picked positions, and only there. A
    block without a separate MLP of one argument (OPT; MPT and Bloom hand theirs the residual as well) runs as it is.

    Args:
        anatomy: the model.
        rows_P: row of each picked position; no position twice.
        columns_P: column of each picked position.
    """
    name = anatomy.down_name.rpartition(".")[0]
    if not name or "." in name:
        yield
        return
    shapes: list[torch.Size] = []

    def cut(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if len(args) != 1 or kwargs:
            return None
        shapes.append(args[0].shape)
        return (args[0][rows_P, columns_P][None],), kwargs

    def spread(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not shapes:
            return output
        whole = output.new_zeros(shapes.pop())
        whole[rows_P, columns_P] = output[0]
        return whole

    mlp = anatomy.blocks[-1].get_submodule(name)
    handles = [mlp.register_forward_pre_hook(cut, with_kwargs=True), mlp.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@enough_memory("the answer to one prompt")
@torch.no_grad()
def greedy(anatomy: Anatomy, ids: Sequence[int], length: int, ends: Collection[int] = ()) -> list[int]:
    """The likeliest continuation of one row, token by token.

    Nothing else plays in: a checkpoint's own generation settings (Qwen2.5 repeats itself less, others sample or search beams)
    would otherwise make an answer that is not the argmax.

    Args:
        anatomy: the model.
        ids: the row to continue.
        length: most tokens to add.
        ends: tokens to stop at; they are not part of the answer.
    """
    row = list(ids)
    with frozen(anatomy.model):
        while len(row) < len(ids) + length:
            inputs = torch.tensor([row], device=anatomy.device)
            output = anatomy.model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False)
            new = int(output.logits[0, -1].argmax())
            if new in ends:
                break
            row.append(new)
    return row[len(ids) :]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the block; modes and flags as before after it."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
