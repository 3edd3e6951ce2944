"""From a request to rows of token ids: subject's last token, target positions, context templates.

Legend: B = rows, T = positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.errors import EditError, MalformedRecord, brief
from lit_edit.request import EditRequest

KL_PROMPT = "{} is a"
"""The prompt whose next-token distribution at the subject must not move (MEMIT's and ROME's choice)."""


@dataclass(frozen=True)
class Row:
    """One row of token ids."""

    ids: tuple[int, ...]
    subject: int
    """Index of the subject's last token."""
    labels: tuple[tuple[int, int], ...] = ()
    """``(position, token)`` pairs: what should be predicted at which position."""


@dataclass(frozen=True)
class EditRows:
    """Everything that is run for one request."""

    rewriting: tuple[Row, ...]
    """Prompt plus target without its last token: first bare, then one row per context."""
    kl: Row
    """The KL prompt, ended at the subject's last token: nothing behind it can matter to a causal model."""
    request: EditRequest
    """The fact itself."""

    @property
    def reading(self) -> tuple[Row, ...]:
        """The rewriting rows, ended at the subject's last token: what keys and values are read from."""
        return tuple(Row(row.ids[: row.subject + 1], row.subject) for row in self.rewriting)


class Encoder:
    """Text to token ids with character offsets, the same for every tokenizer.

    Positions come from character offsets, never from tokenising a prefix on its own; special tokens at the start (BOS) are
    kept, those a tokenizer appends at the end are dropped. Rows are padded on the right here, so that the tokenizer's own
    padding side does not matter.

    Args:
        tokenizer: a Hugging Face tokenizer that reports offsets.
        longest: most tokens a row may have (the model's positions); ``None`` for no limit.

    Raises:
        EditError: if it does not.
    """

    def __init__(self, tokenizer: Any, longest: int | None = None) -> None:
        self.longest = longest
        if not getattr(tokenizer, "is_fast", False):
            raise EditError(
                f"the tokenizer {type(tokenizer).__name__} reports no character offsets; "
                "a fast tokenizer (tokenizer.json) is needed to find the subject's last token"
            )
        self.tokenizer = tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad = 0 if pad is None else int(pad)  # masked everywhere: any id will do

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their character spans; a special token's span is empty."""
        found = self.tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        ids, spans = list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]
        special = set(self.tokenizer.all_special_ids)
        while ids and ids[-1] in special and spans[-1][0] == spans[-1][1]:
            ids.pop()
            spans.pop()
        return ids, spans

    def with_target(self, prompt: str, target: str) -> tuple[list[int], list[tuple[int, int]], int]:
        """Ids of ``prompt + " " + target``, their spans, and the index of the target's first token.

        Raises:
            MalformedRecord: if the target has no token of its own, no token stands before it, or the row is too long.
        """
        ids, spans = self.encode(f"{prompt} {target.strip()}")
        if self.longest is not None and len(ids) > self.longest:
            raise MalformedRecord("prompt", f"is {len(ids)} tokens long with its target, and the model takes {self.longest}")
        first = next((i for i, (start, end) in enumerate(spans) if end > start and end > len(prompt) + 1), len(ids))
        if first == len(ids):
            raise MalformedRecord("target_new", f"{brief(target)} has no token of its own after {brief(prompt, 200)}")
        # A token of the blank alone (SentencePiece, digits) belongs to the answer: it is predicted after the prompt.
        while first > 0 and spans[first - 1][1] > len(prompt) and spans[first - 1][0] >= len(prompt):
            first -= 1
        if first == 0:
            raise MalformedRecord("prompt", f"{brief(prompt, 200)} gives no token before the answer {brief(target)}")
        return ids, spans, first

    def subject_index(self, spans: Sequence[tuple[int, int]], end: int) -> int:
        """Index of the last token that covers the character before ``end``.

        Raises:
            MalformedRecord: if no token does (the tokenizer dropped the subject).
        """
        found = [i for i, (start, stop) in enumerate(spans) if start < end <= stop]
        if not found:
            raise MalformedRecord("subject", "leaves no token after tokenisation")
        return found[-1]

    def rows(self, request: EditRequest, contexts: Sequence[str]) -> EditRows:
        """All rows of one request.

        Args:
            request: the fact.
            contexts: context templates with one ``{}`` each; the bare prompt is always added in front.

        Raises:
            MalformedRecord: if the request names no subject, or cannot be tokenised as it has to be.
        """
        subject = request.subject.strip()
        if not subject:
            raise MalformedRecord("subject", "is missing; this editor reads its keys at the subject's last token")
        rewriting = []
        for context in ("{}", *contexts):
            head, tail = context.split("{}")
            before, after = request.prompt.split("{}")
            prompt = f"{head}{before}{subject}{after}{tail}"
            ids, spans, first = self.with_target(prompt, request.target_new)
            at = self.subject_index(spans, len(head) + len(before) + len(subject))
            labels = tuple((first - 1 + i, token) for i, token in enumerate(ids[first:]))
            rewriting.append(Row(tuple(ids[:-1]), at, labels))
        ids, spans = self.encode(KL_PROMPT.replace("{}", subject))
        at = self.subject_index(spans, KL_PROMPT.index("{}") + len(subject))
        return EditRows(tuple(rewriting), Row(tuple(ids[: at + 1]), at), request)

    def answer_rows(self, request: EditRequest) -> EditRows:
        """The bare prompt with its answer alone, for editors that need no subject; ``subject`` is the prompt's last token.

        Raises:
            MalformedRecord: if the request cannot be tokenised as it has to be.
        """
        ids, _, first = self.with_target(request.text, request.target_new)
        labels = tuple((first - 1 + i, token) for i, token in enumerate(ids[first:]))
        prompt = Row(tuple(ids[:first]), first - 1)
        return EditRows((Row(tuple(ids[:-1]), first - 1, labels),), prompt, request)


def right_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids and attention mask, ``[rows, longest]`` each, padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *([pad] * (longest - len(row)))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(longest, device=device)[None] < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def right_pad_unmasked(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """As :func:`right_pad`, but padding may be seen: no token of a causal model looks to its right.

    A masked one whose sliding window holds nothing but padding would have no key at all, and some attention kernels give such a
    position a gradient that is not a number.
    """
    inputs = right_pad(rows, pad, device)
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


@torch.no_grad()
def sample_contexts(
    model: torch.nn.Module,
    encoder: Encoder,
    starts: Sequence[str],
    count: int,
    lengths: Sequence[int],
    seed: int,
    top_k: int = 5,
) -> tuple[str, ...]:
    """Context templates: text that the model itself continues from a few words, then ``". {}"``.

    They belong to the targets and keys of a whole run and are sampled once, from the unedited model, with a generator of
    their own, so that no other random state moves. Source: the released MEMIT code (top-k sampling, k = 5, five templates of
    10 tokens in all) and ROME's (ten of 5 and ten of 10 tokens); the seed is ours.

    Args:
        model: the unedited model.
        encoder: its tokenizer.
        starts: words to continue, used in turn.
        count: number of templates.
        lengths: tokens of a template, its start included; each length gets an even share of the templates.
        seed: of the sampling.
        top_k: candidates per step.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    templates = []
    for index in range(count):
        ids, _ = encoder.encode(starts[index % len(starts)])
        while len(ids) < lengths[index * len(lengths) // count]:
            inputs = right_pad([ids], encoder.pad, device)
            logits = model(**inputs, use_cache=False).logits[0, -1].float()
            best = logits.topk(min(top_k, len(logits)))
            # Drawn on the CPU: the same seed gives the same templates on every device.
            pick = torch.multinomial(best.values.softmax(0).cpu(), 1, generator=generator)
            ids.append(int(best.indices[int(pick)]))
        text = encoder.tokenizer.decode(ids, skip_special_tokens=True)
        text = " ".join(text.replace("{", " ").replace("}", " ").split())
        templates.append(f"{text}. {{}}")
    return tuple(templates)
