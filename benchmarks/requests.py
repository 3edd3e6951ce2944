"""Requests to edit: CounterFact where its files are at hand, else token ids of like lengths drawn at random."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from lit_edit.data.counterfact import CounterFact
from lit_edit.prompts import EditRows, Encoder, Row
from lit_edit.request import EditRequest

# Tokens before the subject, of the subject, between it and the answer, and of the answer, in per mille of CounterFact's
# requests under GPT-2's tokenizer; 172 different prompts in 500 requests.
BEFORE = {0: 808, 1: 34, 2: 22, 3: 56, 4: 70, 5: 6, 6: 4}
SUBJECT = {1: 10, 2: 136, 3: 274, 4: 212, 5: 180, 6: 110, 7: 34, 8: 30, 9: 6, 10: 2, 11: 6}
BEHIND = {1: 148, 2: 158, 3: 304, 4: 164, 5: 188, 6: 32, 7: 6}
ANSWER = {1: 1000}
PROMPTS = 172


def drawn(count: int, vocabulary: int, contexts: int, seed: int) -> list[EditRows]:
    """Random requests with CounterFact's lengths: few different prompts, a subject of its own for each, common contexts.

    Args:
        count: number of requests.
        vocabulary: token ids are drawn from all of it.
        contexts: rows besides the bare prompt; each puts 11 tokens in front (10 sampled ones and a full stop).
        seed: of the drawing.
    """
    source = random.Random(seed)

    def some(length: int) -> tuple[int, ...]:
        return tuple(source.randrange(vocabulary) for _ in range(length))

    heads = [(), *(some(11) for _ in range(contexts))]
    prompts = [(some(_length(source, BEFORE)), some(_length(source, BEHIND))) for _ in range(PROMPTS)]
    found = []
    for index in range(count):
        before, behind = prompts[source.randrange(PROMPTS)]
        subject, answer = some(_length(source, SUBJECT)), some(_length(source, ANSWER))
        rows = []
        for head in heads:
            prompt = (*head, *before, *subject, *behind)
            labels = tuple((len(prompt) - 1 + at, token) for at, token in enumerate(answer))
            rows.append(Row((*prompt, *answer)[:-1], len(head) + len(before) + len(subject) - 1, labels))
        request = EditRequest("{} is", f"subject {index}", "answer", case_id=str(index))
        found.append(EditRows(tuple(rows), Row(subject, len(subject) - 1), request))
    return found


def _length(source: random.Random, per_mille: Mapping[int, int]) -> int:
    return source.choices(list(per_mille), list(per_mille.values()))[0]


def gpt2_encoder(vocab: Path, merges: Path) -> Encoder:
    """GPT-2's tokenizer from its two files."""
    backend = ByteLevelBPETokenizer(str(vocab), str(merges))._tokenizer
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"))


def counterfact(path: Path, encoder: Encoder, count: int, templates: tuple[str, ...]) -> list[EditRows]:
    """The first records of a CounterFact file."""
    records = json.loads(path.read_text(encoding="utf-8"))[:count]
    reader = CounterFact()
    return [encoder.rows(reader.request(record, "", index), templates) for index, record in enumerate(records, start=1)]
