"""More room for keys: ``python -m lit_edit.reference.widen FOLDER --inner 4096 --to FOLDER``.

Every MLP of a GPT-2 type model gets further hidden units that read at random and write nothing: the model says what it said,
bit for bit up to the order of sums, and an editor has more inputs to tell subjects apart by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from lit_edit.errors import EditError, exit_code
from lit_edit.models.identity import load_pretrained


def widened(model: nn.Module, inner: int, threshold: float = 1.5, seed: int = 0) -> GPT2LMHeadModel:
    r"""The same function with wider MLPs.

    .. math:: y = W \sigma(W_\text{in} x + b) = [W, 0]\; \sigma([W_\text{in}; S\,N]\, x + [b; -\theta])

    with N standard normal and S the standard deviation of the layer's own input weights. With a layer norm before the MLP and
    weights of standard deviation :math:`1/\sqrt{d}`, as the reference model's keep, the new units see numbers of about unit
    variance: at a threshold of 1.5 some 6 % of them speak at a time, where half of a layer's own do.

    Args:
        model: a GPT-2 type model; it is not changed.
        inner: hidden units of each MLP afterwards.
        threshold: theta, what a new unit takes to speak.
        seed: of N.

    Raises:
        EditError: if the model is of another type, or no narrower than ``inner``.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise EditError(f"{type(model).__name__} cannot be widened; only MLPs of GPT-2 type models can")
    config = deepcopy(model.config)
    own = config.n_inner or 4 * config.n_embd
    if inner <= own:
        raise EditError(f"the MLPs have {own} hidden units already; give more than that")
    config.n_inner = inner
    wide: Any = GPT2LMHeadModel(config)
    wide.to(dtype=model.transformer.wte.weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        new = torch.zeros_like(wide.state_dict()[name])
        if name.endswith("mlp.c_fc.weight"):
            more = torch.randn(len(weight), inner - own, generator=generator) * weight.float().std()
            new[:, :own], new[:, own:] = weight, more.to(weight.dtype)
        elif name.endswith("mlp.c_fc.bias"):
            new[:own], new[own:] = weight, -threshold
        elif name.endswith("mlp.c_proj.weight"):
            new[:own] = weight
        else:
            new = weight
        state[name] = new
    wide.load_state_dict(state)
    made: GPT2LMHeadModel = wide.eval()
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Write the wider model beside its tokenizer.

    Raises:
        EditError: if the model cannot be loaded, and see :func:`widened`.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_edit.reference.widen", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="a model of 'lit-edit pretrain-facts', or another one of GPT-2 type")
    parser.add_argument("--inner", type=int, required=True, help="hidden units of each MLP afterwards")
    parser.add_argument("--threshold", type=float, default=1.5, help="what a new unit takes to speak; default 1.5")
    parser.add_argument("--seed", type=int, default=0, help="of what the new units read")
    parser.add_argument("--to", type=Path, required=True, help="folder of the wider model")
    given = parser.parse_args(argv)
    disable_progress_bar()  # transformers' own, over tensors that load in a moment
    model, tokenizer = load_pretrained(given.folder, None, torch.float32)
    wide: Any = widened(model, given.inner, given.threshold, given.seed)
    wide.save_pretrained(given.to)
    tokenizer.save_pretrained(given.to)
    print(f"{given.to}: {given.inner} hidden units in each MLP, and what {given.folder} says")


if __name__ == "__main__":
    sys.exit(exit_code("python -m lit_edit.reference.widen", main))
