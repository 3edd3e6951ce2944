"""The untrained network, in one of two families."""

from __future__ import annotations

from typing import Any

from torch import nn


def build_network(sizes: Any, vocabulary: int, end: int, positions: int) -> nn.Module:
    """An untrained Hugging Face model without dropout, embeddings tied.

    Args:
        sizes: anything with ``family, width, layers, heads, inner`` and ``activation``, ``None`` for the family's own.
        vocabulary: number of tokens.
        end: id of the end-of-text token.
        positions: the longest text, in tokens.

    Raises:
        ValueError: if the family is unknown.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    shared: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    # Plain matrix products are faster than the fused kernels for masks of zeros and minus infinity and short rows.
    shared["attn_implementation"] = "eager"
    if sizes.family == "gpt2":
        if sizes.activation is not None:
            shared["activation_function"] = sizes.activation
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=positions, n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads,
                n_inner=sizes.inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shared,
            )
        )  # fmt: skip
    if sizes.family == "llama":
        if sizes.activation is not None:
            shared["hidden_act"] = sizes.activation
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, max_position_embeddings=positions, hidden_size=sizes.width,
                num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads,
                intermediate_size=sizes.inner, tie_word_embeddings=True, **shared,
            )
        )  # fmt: skip
    raise ValueError(f"family is 'gpt2' or 'llama', found {sizes.family!r}")
