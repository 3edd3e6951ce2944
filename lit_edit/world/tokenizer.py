"""A byte-level BPE tokenizer whose vocabulary is trained on the world's own words.

Merging runs until nothing is left to merge, so every word of the world is one token (with its leading blank) while any
other text still splits into smaller pieces, down to single bytes. Text is treated as if it began with a blank: a person
named first in a sentence has the same tokens as anywhere else, as with GPT-2's option ``add_prefix_space``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lit_edit.world.facts import World
from lit_edit.world.skills import BAD, DID, GOOD, KINDS, NEAR, NOUNS, OPPOSITES, WHO, WORDS, WORKS
from lit_edit.world.text import PLAIN, STARTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
"""The one special token: start, end and padding. It is never added by itself."""

_FRAMES = "Review Verdict positive negative was and is are sum of a so some kind Copy Again opposite person who the The"
"""Words that only occur in the wording of skills and biographies."""


def words(world: World) -> list[str]:
    """Every word that is written in the world, sorted; numbers included."""
    found: set[str] = set(STARTS) | set(PLAIN) | set(world.first_names) | set(world.last_names)
    for relation in world.relations:
        found.update(relation.values, *(re.findall(r"\w+", phrasing) for phrasing in relation.phrasings))
    for group in (GOOD, BAD, WORKS, NEAR, WHO, DID, WORDS, tuple(KINDS), *NOUNS, *OPPOSITES, *KINDS.values()):
        found.update(group)
    found.update(who.lower() for who in WHO)
    found.update(str(number) for number in range(19))
    found.update(_FRAMES.split())
    return sorted(found)


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of a world: deterministic, with offsets, right padding, nothing added automatically."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast as Fast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000,  # never reached: training stops when every word is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    core.train_from_iterator(_training_lines(words(world)), trainer=trainer)
    return Fast(tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END, padding_side="right")


def _training_lines(found: Iterable[str]) -> Iterable[str]:
    """One word a line; each with its leading blank, as it occurs in text."""
    return (f" {word}" for word in found)
