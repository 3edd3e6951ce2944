"""What makes a model a decoder that can be edited: its parts, found by type and by what a forward pass does.

Legend: O = d_out (the hidden size), I = d_in (the MLP's inner size).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_edit.errors import EditError

# Path of the down-projection inside a block, for families whose layout is known. Anything else is found by looking.
_KNOWN_DOWN = ("mlp.c_proj", "mlp.fc_out", "mlp.dense_4h_to_h", "mlp.down_proj", "mlp.fc2", "fc2", "feed_forward.w2")


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight ``[d_in, d_out]``: by type (GPT-2's ``Conv1D``), never by shape."""
    return type(module).__name__ == "Conv1D"


def out_features(module: nn.Module) -> int:
    """Output width of a ``Linear`` or ``Conv1D``."""
    return stored_weight(module).shape[1 if is_transposed(module) else 0]


def in_features(module: nn.Module) -> int:
    """Input width of a ``Linear`` or ``Conv1D``."""
    return stored_weight(module).shape[0 if is_transposed(module) else 1]


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a matrix that is read as one: ``Linear`` or ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def stored_weight(module: nn.Module) -> Tensor:
    """The weight of a projection, as it is stored."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states in what a block returned, tuple or bare tensor."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def norm_factors(norm: nn.Module, inputs_ND: Tensor) -> tuple[Tensor, Tensor]:
    r"""What a norm :math:`y = s \, g \odot x` multiplies with: its gain, and what it divides by in every row.

    Both are read off what it does: gains may be stored as g or as 1 + g, and where inputs are small the epsilon beside
    their mean square counts.

    Args:
        norm: an RMS norm.
        inputs_ND: what it is given, ``[n, d]``, in the dtype that it runs in.

    Returns:
        Gain ``g [1, d]`` and divisor ``1 / s [n, 1]``, float32 or wider.
    """
    wide = torch.promote_types(inputs_ND.dtype, torch.float32)
    gain_1D = norm(torch.ones_like(inputs_ND[:1])).to(wide)
    scaled_ND, found_ND = gain_1D * inputs_ND.to(wide), norm(inputs_ND).to(wide)
    along_N1 = (scaled_ND * found_ND).sum(-1, keepdim=True)
    # Of an input of zeros nothing can be said but that no change of it is wanted.
    return gain_1D, scaled_ND.square().sum(-1, keepdim=True) / along_N1.clamp_min(torch.finfo(wide).tiny)


def find_blocks(model: nn.Module, count: int, name: str) -> tuple[str, nn.ModuleList]:
    """Dotted name and modules of the list of transformer blocks.

    Raises:
        EditError: if no list of that length holds projections.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    lists = [(n, m) for n, m in lists if any(is_projection(sub) for sub in m[0].modules())]
    if not lists:
        raise EditError(f"{name} has no list of {count} transformer blocks that lit_edit recognises")
    return lists[0]


def find_down(blocks: nn.ModuleList, hidden: int, name: str) -> str:
    """Dotted name of the down-projection inside a block.

    Raises:
        EditError: if no projection, or more than one, could be it.
    """
    block = blocks[0]
    for path in _KNOWN_DOWN:
        try:
            module = block.get_submodule(path)
        except AttributeError:
            continue
        if is_projection(module) and out_features(module) == hidden:
            return path
    # Nobody listed this family: the down-projection is the one projection outside attention that comes back to the
    # hidden size from a wider inner one.
    found: list[str] = [
        path
        for path, module in block.named_modules()
        if is_projection(module)
        and "att" not in path.lower()
        and out_features(module) == hidden
        and in_features(module) != hidden
    ]
    if len(found) != 1:
        what = "none" if not found else " and ".join(found)
        raise EditError(
            f"the MLP down-projection of {name} is not clear: in a block, {what} lead(s) back to the hidden size {hidden}"
        )
    return found[0]


@torch.no_grad()
def check_causal(model: nn.Module, name: str) -> None:
    """Refuse a model in which a later token changes the prediction at an earlier one.

    Raises:
        EditError: then, and if predictions are not finite, which says nothing about anything.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        mask = torch.ones(1, 2, dtype=torch.long, device=device)
        rows = (torch.tensor([[0, last]], device=device) for last in (0, 1))
        first, other = (model(input_ids=row, attention_mask=mask, use_cache=False).logits[0, 0] for row in rows)
    finally:
        model.train(training)
    if not bool(first.isfinite().all()):
        raise EditError(
            f"{name} predicts numbers that are not finite, so nothing can be said about it: its weights hold NaN or Inf, or "
            "its dtype is too small for it; 'lit-edit doctor' says which"
        )
    if not torch.allclose(first, other, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise EditError(
            f"{name} looks ahead: its first prediction depends on the token after it; editing needs a causal decoder, "
            "not an encoder"
        )


def returns_tuple(model: nn.Module, blocks: nn.ModuleList, down_name: str, after: str | None, name: str) -> bool:
    """One forward over two tokens, twice: is a block's output a tuple, and does its MLP add straight to it?

    Raises:
        EditError: if a block returns neither hidden states nor a tuple of them and more, or its MLP does not add straight.
    """
    block = blocks[0]
    source = block.get_submodule(after if after is not None else down_name)
    device = next(model.parameters()).device
    inputs = {key: torch.full((1, 2), value, device=device) for key, value in (("input_ids", 0), ("attention_mask", 1))}
    seen: list[Tensor] = []
    kinds: list[bool] = []

    def keep(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        if not isinstance(hidden_of(output), Tensor):
            kind = type(output).__name__
            raise EditError(f"a block of {name} returns a {kind} instead of hidden states; this family is not supported")
        kinds.append(isinstance(output, tuple))
        seen.append(hidden_of(output).float().clone())

    def nudge(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + 1.0

    training = model.training
    model.eval()
    handles = [block.register_forward_hook(keep)]
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
            handles.append(source.register_forward_hook(nudge))
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    moved = seen[1] - seen[0]
    # bf16 keeps 8 bits: 1 added to a large activation can be off by a few percent of that activation.
    slack = 0.02 * (1.0 + float(seen[0].abs().max()))
    if float((moved - 1.0).abs().max()) > slack:
        raise EditError(
            f"in {name} the output of {down_name} is not added to the residual stream as it is "
            f"(adding 1 moved the block's output by {float(moved.mean()):.3g}); this family is not supported"
        )
    return kinds[0]
