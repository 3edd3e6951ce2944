"""A model as shapes: its parts, its parameters and what a token costs, from its configuration alone.

Legend: O = d_out, I = d_in, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.models.decoder import find_blocks, find_down, hidden_of, is_transposed
from lit_edit.models.identity import no_decoder, read_config

_WHOLE_ROWS = ("mistral", "gemma2", "gemma3_text", "gemma3", "mpt", "bloom")
"""Families that cannot be run in packs (:mod:`lit_edit.passes.packing`); a run finds out by trying, which takes weights."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model without a number in it: every tensor is a shape with a dtype (``FakeTensor``)."""

    anatomy: Anatomy
    mode: FakeTensorMode
    """Where its tensors live; everything that touches them has to run in it."""
    config: Any

    @classmethod
    def of(cls, pretrained: str, revision: str | None, dtype: torch.dtype) -> Network:
        """The model of a folder or hub id, of which ``config.json`` is read and nothing else.

        Raises:
            EditError: if there is no such model, or it cannot be edited.
        """
        return cls.from_config(read_config(pretrained, revision, weights=False)[1], dtype, pretrained)

    @classmethod
    def from_config(cls, config: Any, dtype: torch.dtype, name: str = "the model") -> Network:
        """The model of a configuration.

        Args:
            config: a Hugging Face configuration.
            dtype: dtype of the weights.
            name: what the user calls it.

        Raises:
            EditError: if it is no causal language model, or its parts cannot be found.
        """
        from transformers import AutoModelForCausalLM

        mode = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            with mode, torch.device("cpu"):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except ValueError as error:
            if "Unrecognized configuration class" in str(error):
                raise no_decoder(name, config) from None
            raise EditError(f"the network of {name} cannot be built from its config.json: {error}") from None
        model.requires_grad_(False).eval()
        text = config.get_text_config()
        if getattr(config, "is_encoder_decoder", False):
            raise no_decoder(name, config)
        kind = type(model).__name__
        blocks_name, blocks = find_blocks(model, int(text.num_hidden_layers), kind)
        down = find_down(blocks, int(text.hidden_size), kind)
        after = next((n for n in ("post_feedforward_layernorm", "post_mlp_layernorm") if hasattr(blocks[0], n)), None)
        packs = text.model_type not in _WHOLE_ROWS
        anatomy = Anatomy(model, blocks_name, down, after, _is_tuple(model, blocks[0], mode), continues=True, packs=packs)
        return cls(anatomy, mode, config)

    # ------------------------------------------------------------------------------------------------ sizes

    @property
    def parameters(self) -> int:
        """Numbers of the whole model; tied weights count once."""
        return sum(value.numel() for value in self.anatomy.model.parameters())

    @property
    def model_bytes(self) -> int:
        """Parameters and buffers, tied ones once, each in its dtype."""
        model = self.anatomy.model
        return _bytes([*model.parameters(), *model.buffers()])

    def block_bytes(self, layer: int = 0) -> int:
        """Parameters of one block."""
        return _bytes(list(self.anatomy.blocks[layer].parameters()))

    @property
    def largest_bytes(self) -> int:
        """The largest single parameter."""
        return max(_bytes([value]) for value in self.anatomy.model.parameters())

    @property
    def heads(self) -> tuple[int, int]:
        """Heads that keep keys and values, and their width."""
        text = self.config.get_text_config()
        queries = int(text.num_attention_heads)
        heads = int(getattr(text, "num_key_value_heads", None) or (1 if getattr(text, "multi_query", False) else queries))
        return heads, int(getattr(text, "head_dim", None) or text.hidden_size // queries)

    # ------------------------------------------------------------------------------------------------ operations

    def block_operations(self, tokens: float, context: float, blocks: int) -> float:
        r"""Floating point operations of a forward pass of some blocks.

        .. math:: 2\,t\,P + 4\,t\,c\,d

        with ``P`` the numbers of the block's projections (a multiplication and an addition each) and ``d`` the width of all
        query heads together.

        Args:
            tokens: tokens ``t``, padding included.
            context: positions ``c`` that each attends to.
            blocks: how many blocks.
        """
        text = self.config.get_text_config()
        width = int(text.num_attention_heads) * self.heads[1]
        return blocks * tokens * (2 * self.projections + 4 * context * width)

    @property
    def projections(self) -> int:
        """Numbers of the projections of the first block, those that every token is multiplied with."""
        return sum(_projection(module) for module in self.anatomy.blocks[0].modules())

    @property
    def mlp(self) -> int:
        """Numbers of the projections of the MLP that the down-projection belongs to."""
        name = self.anatomy.down_name.rpartition(".")[0]
        inside = self.anatomy.blocks[0].get_submodule(name) if name else None
        return sum(_projection(module) for module in inside.modules()) if inside is not None else 0

    def head_operations(self, positions: float) -> float:
        """Floating point operations of the logits of some positions, ``2 d V`` each."""
        return 2.0 * positions * self.anatomy.vocabulary * self.anatomy.d_model


def _projection(module: nn.Module) -> int:
    if isinstance(module, nn.Linear) or is_transposed(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.numel()
    return 0


def _bytes(values: list[Tensor]) -> int:
    distinct = {id(value): value for value in values}
    return sum(value.numel() * value.element_size() for value in distinct.values())


def _is_tuple(model: nn.Module, block: nn.Module, mode: FakeTensorMode) -> bool:
    """Whether a block returns a tuple, as :attr:`lit_edit.anatomy.Anatomy.tuple_output` says."""
    kinds: list[bool] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        kinds.append(isinstance(output, tuple) and isinstance(hidden_of(output), Tensor))

    handle = block.register_forward_hook(look)
    try:
        with mode, torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        handle.remove()
    return kinds[0]
