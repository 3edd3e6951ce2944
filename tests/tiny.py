"""Tiny random models and a tiny tokenizer for the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXT = (
    "The Eiffel Tower is located in the city of Paris.",
    "Therefore, the capital of France is Paris, and Berlin is the capital of Germany.",
    "Because Kyōto and Zürich are old cities, naïve façades are seen; 東京 is big.",
    "I was born in Rome. You were born in Vienna. She is a native speaker of Dutch.",
    "Ada Lovelace's mother tongue is English. Marie Curie's is Polish. It was created by Sony.",
)
"""What the tokenizer is trained on."""

_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_GQA = {**_WIDTHS, "num_key_value_heads": 2, "head_dim": 8}
_GEMMA = {**_GQA, "query_pre_attn_scalar": 8, "sliding_window": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "gpt_neox": _WIDTHS,
    "llama": _GQA,
    "qwen2": {**_GQA, "max_window_layers": 3},
    "qwen3": _GQA,
    "mistral": {**_GQA, "sliding_window": 6},
    "phi3": {**_GQA, "pad_token_id": 0},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "num_hidden_layers": 4},
    "gemma3_text": {**_GEMMA, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "opt": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": _WIDTHS,
    "stablelm": {**_WIDTHS, "num_key_value_heads": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 48},
}
"""Smallest configuration of every family the tests know."""

NESTED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**FAMILIES["gemma3_text"], "vocab_size": 320, "max_position_embeddings": 128},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 1,
        "image_token_index": 319,
        "boi_token_index": 318,
        "eoi_token_index": 317,
    },
}
"""Models of more than text, whose language model is a part of them."""


@cache
def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens; with ``bos`` it puts ``<bos>`` in front of everything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    offsets = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        tokenizer.post_processor = processors.Sequence([offsets, template])
    else:
        tokenizer.post_processor = offsets
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", bos_token="<bos>")


def tiny_model(family: str, **overrides: Any) -> nn.Module:
    """A random float32 model of a family in evaluation mode; the same one on every call.

    Args:
        family: key of :data:`FAMILIES` or :data:`NESTED`.
        **overrides: configuration entries to change.
    """
    common = {"vocab_size": 320, "eos_token_id": 0, "bos_token_id": 1, "attn_implementation": "eager"}
    if family not in ("gpt2", "gptj"):
        common["max_position_embeddings"] = 128
    config = AutoConfig.for_model(family, **{**common, **{**FAMILIES, **NESTED}[family], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            # Larger than the usual 0.02, and norms and biases off their neutral values: a mistake must be able to show.
            spread = 0.2 if parameter.dim() > 1 else 0.1
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, spread)
    return model.float().eval().requires_grad_(False)


def save_tiny(folder: str | Path, family: str, bos: bool = False, **overrides: Any) -> Path:
    """Write a tiny model and its tokenizer as a folder that ``from_pretrained`` loads."""
    tiny_model(family, **overrides).save_pretrained(folder)
    tiny_tokenizer(bos).save_pretrained(folder)
    return Path(folder)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal numbers that depend on shape and seed only."""
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)
