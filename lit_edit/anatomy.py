"""Where a Hugging Face causal language model keeps the parts that editing needs.

Legend: O = d_out (the hidden size), I = d_in (the MLP's inner size).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.errors import EditError
from lit_edit.models.decoder import (
    check_causal,
    find_blocks,
    find_down,
    in_features,
    is_transposed,
    norm_factors,
    out_features,
    returns_tuple,
    stored_weight,
)
from lit_edit.models.decoder import hidden_of as hidden_of  # whoever reads outputs of blocks knows an anatomy
from lit_edit.models.refusals import refuse_model
from lit_edit.parallel import sharding

_FINAL_NORMS = (
    "ln_f",
    "norm",
    "norm_f",
    "final_norm",
    "final_layer_norm",
    "final_layernorm",
    "layer_norm",
    "layernorm",
    "embedding_norm",
)

PACK = 128
"""Columns of a pack of rows: beyond, attention over what is masked costs more than it saves at the seams."""


def _text_config(model: nn.Module) -> Any:
    """The configuration of the language model proper (multimodal families nest it)."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits, ``None`` where a model has none."""
    find: Any = model.get_output_embeddings
    head: nn.Module | None = find()
    return head


@dataclass(frozen=True)
class Anatomy:
    """The parts of one causal language model, whatever its family calls them. Build it with :meth:`of`."""

    model: nn.Module
    blocks_name: str
    """Dotted name of the list of blocks, e.g. ``"model.layers"``."""
    down_name: str
    """Dotted name of the down-projection inside a block, e.g. ``"mlp.down_proj"``."""
    after_mlp_name: str | None
    """Name inside a block of a norm between the MLP and the residual stream (Gemma 2/3), ``None`` where it is added as is."""
    tuple_output: bool
    """Whether a block returns a tuple (hidden states first) or the bare hidden states."""
    continues: bool = False
    """Whether rows can be continued from cached attention keys and values as if they had been run whole."""
    packs: bool = False
    """Whether rows that begin alike can be run as trees of tokens, see :mod:`lit_edit.passes.packing`."""

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Find the parts by module type and by one forward pass over two tokens.

        Raises:
            EditError: if the model is no decoder or no plain one (:func:`lit_edit.models.refusals.refuse_model`), its blocks or
                down-projections cannot be told apart, or an MLP's output reaches the residual stream in a way that a linear
                memory cannot account for.
        """
        name = type(model).__name__
        if getattr(model.config, "is_encoder_decoder", False) or _head(model) is None:
            raise EditError(
                f"{name} is not a causal language model (no decoder-only head); editing needs one that predicts the next token"
            )
        refuse_model(model, name)
        check_causal(model, name)
        text = _text_config(model)
        hidden, count = (getattr(text, key, None) for key in ("hidden_size", "num_hidden_layers"))
        if hidden is None or count is None:
            raise EditError(f"the configuration of {name} gives no hidden_size or no num_hidden_layers; it is not supported")
        blocks_name, blocks = find_blocks(model, int(count), name)
        down_name = find_down(blocks, int(hidden), name)
        after = next((n for n in ("post_feedforward_layernorm", "post_mlp_layernorm") if hasattr(blocks[0], n)), None)
        tuple_output = returns_tuple(model, blocks, down_name, after, name)
        from lit_edit.passes.packing import packs_exactly  # late: these run models, which takes an anatomy
        from lit_edit.passes.suffix import continues_exactly

        found = cls(model, blocks_name, down_name, after, tuple_output)
        size = min(PACK, found.positions)
        # Asked once, of the model as it is loaded: which way is taken must not depend on what was edited since.
        return replace(found, continues=continues_exactly(found), packs=bool(packs_exactly(found, size, size // 2, 0)))

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        blocks = self.model.get_submodule(self.blocks_name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def head(self) -> nn.Module:
        """The module that turns final hidden states into logits (its weight may be tied to the embeddings)."""
        head = _head(self.model)
        assert head is not None  # see of()
        return head

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm before the head, ``None`` if there is none under a known name."""
        parent = self.model.get_submodule(self.blocks_name.rpartition(".")[0]) if "." in self.blocks_name else self.model
        return next((getattr(parent, n) for n in _FINAL_NORMS if hasattr(parent, n)), None)

    @property
    def d_model(self) -> int:
        """Hidden size, which is ``d_out`` of the edited weights."""
        return out_features(self.down(0))

    @property
    def d_inner(self) -> int:
        """Inner size of the MLP, which is ``d_in`` of the edited weights."""
        return in_features(self.down(0))

    @property
    def positions(self) -> int:
        """Longest row of tokens that the model takes."""
        text = _text_config(self.model)
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        return int(next((getattr(text, name) for name in names if getattr(text, name, None)), 2048))

    @property
    def vocabulary(self) -> int:
        """Number of rows of the token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    @property
    def cache_argument(self) -> str:
        """What the model calls the cache of earlier keys and values (transformers 5.24 gave it another name)."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    def down(self, layer: int) -> nn.Module:
        """The down-projection of a block: what a linear associative memory is read out of."""
        return self.blocks[layer].get_submodule(self.down_name)

    def weight_name(self, layer: int) -> str:
        """Parameter name of the edited weight of a block."""
        return f"{self.blocks_name}.{layer}.{self.down_name}.weight"

    def weight(self, layer: int) -> Tensor:
        """View ``[d_out, d_in]`` of the edited weight (writing into it writes into a model that is not sharded)."""
        module = self.down(layer)
        weight = stored_weight(module).data
        return weight.T if is_transposed(module) else weight

    def show(self, layer: int, weight_OI: Tensor) -> None:
        """Copy a weight into the model, cast to its dtype; of a sharded model, every rank takes its part."""
        down = self.down(layer)
        sharding.write(stored_weight(down).data, weight_OI.T if is_transposed(down) else weight_OI)

    def shown(self, layer: int) -> Tensor:
        """The edited weight as the model has it, ``[d_out, d_in]``; every rank has to ask for that of a sharded model."""
        down = self.down(layer)
        weight = sharding.whole(stored_weight(down).data)
        return weight.T if is_transposed(down) else weight

    def proposed_layers(self) -> tuple[int, ...]:
        """Blocks to edit where nobody chose any: the second eighth of the depth, at most five blocks.

        For 32 blocks this is 4 to 8, the published choice for Llama-3-8B; published choices for other models (GPT-2-XL:
        13 to 17 of 48, GPT-J: 3 to 8 of 28) lie in or right above the same range and are better than any rule.
        """
        count = len(self.blocks)
        return tuple(range(count // 8, count // 4 + 1))[-5:]

    def check_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """The layers in ascending order.

        Raises:
            EditError: if there are none, one is named twice, or one does not exist.
        """
        wanted = tuple(sorted(int(layer) for layer in layers))
        count = len(self.blocks)
        if not wanted:
            raise EditError("no layers to edit were named; use --model.layers with at least one block index")
        if len(set(wanted)) != len(wanted):
            raise EditError(f"--model.layers names a layer twice: {list(wanted)}")
        bad = [layer for layer in wanted if not 0 <= layer < count]
        if bad:
            raise EditError(f"--model.layers names layer {bad[0]}, but the model has layers 0 to {count - 1}")
        return wanted

    def pull_back(self, layer: int, down_output: Tensor, change: Tensor) -> Tensor:
        r"""Which change of the down-projection's output makes a wanted change of the residual stream.

        The identity where the MLP's output is added as it is. Where a norm :math:`y = g \odot x / \mathrm{rms}(x)` stands
        in between (Gemma 2/3), :math:`\delta x = \mathrm{rms}(x)\, \delta y \oslash g`, which moves the normalised output in
        the wanted direction and is exact up to the norm's own rescaling. The epsilon in the norm's rms is part of it.

        Args:
            layer: index of the block.
            down_output: output of the down-projection now, ``[n, d_out]``.
            change: wanted change of the block's output, ``[n, d_out]``.
        """
        if self.after_mlp_name is None:
            return change
        norm = self.blocks[layer].get_submodule(self.after_mlp_name)
        with sharding.gathered(self.blocks[layer]):
            gain_1D, rms_N1 = norm_factors(norm, down_output.to(self.dtype))
        return rms_N1 * change / gain_1D

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the edited weights inside the model."""
        return self.weight(0).dtype
