"""Published architectures at a fraction of their width, with tokenizers that begin rows as the published ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import TEXT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import random_model

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

SIZES: dict[str, dict[str, Any]] = {
    # Blocks, width and vocabulary are cut; heads stand to heads of keys and values, and the MLP to the width, as published.
    "gpt-j-6b": {"n_embd": 128, "n_layer": 4, "n_head": 4, "rotary_dim": 16, "n_positions": 128},
    "llama3-8b": {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2},
    "llama3.2-1b": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2},
    "qwen2.5-7b": {"hidden_size": 112, "intermediate_size": 592, "num_attention_heads": 7, "num_key_value_heads": 1},
    "gemma-2-2b": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
                   "query_pre_attn_scalar": 32, "sliding_window": 64},
}  # fmt: skip
BOS = {"llama3-8b": "<|begin_of_text|>", "llama3.2-1b": "<|begin_of_text|>", "gemma-2-2b": "<bos>"}
"""Models whose tokenizer puts a token in front of every row, and that token."""


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A small byte-level BPE with the splitting and the template of a published tokenizer.

    Llama-3 and Gemma put BOS in front of every row by a template, Qwen has no BOS at all and normalises to NFC, and GPT-J's is
    GPT-2's, whose BOS is never put anywhere.
    """
    bos, gpt = BOS.get(name), name.startswith("gpt")
    eos = "<|end_of_text|>" if name.startswith("llama") else "<eos>" if bos else "<|endoftext|>"
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt)
    if not gpt:
        pattern = QWEN_SPLIT if name.startswith("qwen") else LLAMA3_SPLIT
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), split])
    made.pre_tokenizer, made.decoder = split, decoders.ByteLevel()
    if name.startswith("qwen"):
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    # As in the published files, special tokens stand behind the vocabulary.
    made.add_special_tokens([one for one in (bos, eos) if one])
    offsets = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, made.token_to_id(bos))]
        )
        made.post_processor = processors.Sequence([offsets, template])
    else:
        made.post_processor = offsets
    names = {"bos_token": bos} if bos else {"bos_token": eos} if gpt else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, **names)


def model(name: str, **changes: Any) -> nn.Module:
    """A random model of a published architecture, cut in width, depth and vocabulary, with weights in which mistakes show.

    Args:
        name: key of :data:`SIZES`.
        **changes: sizes that differ from :data:`SIZES`.
    """
    said = tokenizer(name)
    sizes = {"vocab_size": len(said) + 3, "eos_token_id": said.eos_token_id, "bos_token_id": said.bos_token_id, **SIZES[name]}
    if not name.startswith("gpt"):
        sizes = {"num_hidden_layers": 4, "max_position_embeddings": 128, "pad_token_id": None, **sizes}
    if name.startswith("gemma"):
        sizes["layer_types"] = ["sliding_attention", "full_attention"] * 2
    if name.startswith("qwen"):
        sizes["max_window_layers"] = 4
    made = random_model(name, **{**sizes, **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for key, value in made.named_parameters():
            norm = key.endswith("weight") and value.dim() == 1
            around = 1.0 if norm and "gemma" not in name else 0.0  # Gemma's norms count from 1
            value.copy_(around + (0.1 if value.dim() > 1 else 0.05) * torch.randn(value.shape))
    return made


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Write model and tokenizer as a folder."""
    model(name, **changes).save_pretrained(folder)  # type: ignore[operator]
    tokenizer(name).save_pretrained(folder)
    return folder
