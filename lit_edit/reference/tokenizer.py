"""A small byte-level BPE tokenizer, trained on the facts and on the text that the model learns from.

Objects and wordings are written down many times over, so that most objects become one token, as frequent words are in
large vocabularies, while names fall into several pieces. As with GPT-2's option ``add_prefix_space``, a name has the same
tokens at the beginning of a text as anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lit_edit.reference.facts import Knowledge
from lit_edit.reference.passages import Passages
from lit_edit.world.facts import World
from lit_edit.world.tokenizer import END, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OBJECT, WORDING, NAME = 300, 300, 2
"""How often objects, templates and skills, and names are written down."""


def build_tokenizer(knowledge: Knowledge, passages: Passages, size: int, characters: int, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer for some facts and text: deterministic, with offsets, right padding, nothing added automatically.

    Args:
        knowledge: the facts.
        passages: the text.
        size: number of tokens at most.
        characters: of the text, this many are read.
        seed: of the draw of the text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast as Fast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    core.train_from_iterator(_lines(knowledge, passages, characters, seed), trainer=trainer)
    return Fast(tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END, padding_side="right")


def _lines(knowledge: Knowledge, passages: Passages, characters: int, seed: int) -> Iterator[str]:
    for fact in knowledge.objects():
        yield from [fact] * OBJECT
    for relation, templates in knowledge.templates.items():
        for template in (*templates, *knowledge.patterns[relation]):
            yield from [f"{template.before} {template.between} {template.after}"] * WORDING
    yield from words(World()) * WORDING
    yield from knowledge.subjects() * NAME
    yield from passages.sample(seed, characters)
