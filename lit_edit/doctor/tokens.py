"""What the tokenizer does to text, as far as finding subjects and scoring answers depends on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from lit_edit.doctor.case import SENTENCES, Case, Check
from lit_edit.doctor.finding import Outcome, cannot, note, off, ok
from lit_edit.passes.forward import logits_at

TEXTS = {
    "plain text": "Ada Lovelace was born in London, wasn't she?",
    "accents": "Kyōto, Zürich, naïve façades, Đà Nẵng",
    "other scripts": "東京 Москва القاهرة",
    "signs": "50 € “quoted” … 🙂",
    "digits": "In 1815, 42.7 % of 1,000",
}
"""What has to come back from encoding and decoding."""

_PROMPTS = ("The capital of France is", "Ada Lovelace was born in", 'He said: "The answer is', "In the year 1815,")
_ANSWERS = ("Paris", "New York", "1815", "Zürich", "iPhone")

_BOS_MATTERS = 0.5
"""Nats per token that a text may be likelier with BOS in front before that is worth saying."""


def kind(case: Case) -> Outcome:
    """Whether it reports character offsets, and whether they name the characters that a token stands for."""
    tokenizer = case.tokenizer
    name, size = type(tokenizer).__name__, len(tokenizer)
    if case.reader is None:
        advice = "The subject's last token is found by offsets; save it as tokenizer.json (a fast tokenizer) and load that."
        return cannot(f"{name}, {size} tokens, without character offsets", advice, name=name, tokens=size)
    for text in TEXTS.values():
        _, spans = case.encoder.encode(text)
        covered = {at for start, stop in spans for at in range(start, stop)}
        missed = [char for at, char in enumerate(text) if at not in covered and not char.isspace()]
        ordered = all(one[1] <= two[1] for one, two in pairwise(spans))
        if missed or not ordered or any(stop > len(text) for _, stop in spans):
            what = f"{missed[0]!r} of {text!r} belongs to no token" if missed else f"those of {text!r} are out of order"
            advice = "Subjects would be looked for in the wrong place; convert the tokenizer anew from its original files."
            return off(f"{name}, {size} tokens, with wrong character offsets: {what}", advice, name=name, tokens=size)
    return ok(f"{name}, {size} tokens, with character offsets", name=name, tokens=size)


def bos(case: Case) -> Outcome:
    """Whether it puts BOS in front by itself, and if not, whether the model expects it."""
    tokenizer, ids = case.tokenizer, case.encoder.encode("Paris")[0]
    own = tokenizer.bos_token_id
    special = set(tokenizer.all_special_ids)
    front = ids[: next((at for at, token in enumerate(ids) if token not in special), len(ids))]
    if front:
        named = " ".join(tokenizer.convert_ids_to_tokens(front))
        return ok(f"{named} is put in front of every text", added=front, id=own)
    if own is None:
        return ok("has none, and adds none", added=[], id=None)
    told = f"{tokenizer.bos_token} is not added"
    if case.found is None or own >= case.found.vocabulary:
        return ok(told, added=[], id=own)
    without, with_it = (_surprise(case, prefix) for prefix in ([], [own]))
    values = {"added": [], "id": own, "nats_without": without, "nats_with": with_it}
    if without - with_it > _BOS_MATTERS:
        advice = (
            'The model seems to have been trained with it: set "add_bos_token": true in tokenizer_config.json, or a '
            "post-processor in tokenizer.json that adds it."
        )
        return note(f"{told}; text is likelier with it ({with_it:.1f} against {without:.1f} nats a token)", advice, **values)
    return ok(f"{told}; text is no likelier with it ({with_it:.1f} against {without:.1f} nats a token)", **values)


def _surprise(case: Case, prefix: list[int]) -> float:
    """Mean negative log-likelihood per token of some sentences behind a prefix, first tokens not counted."""
    total, count = 0.0, 0
    for sentence in SENTENCES:
        ids = [*prefix, *case.encoder.encode(sentence)[0]][: case.anatomy.positions]
        first = len(prefix) + 1
        if len(ids) <= first or max(ids) >= case.anatomy.vocabulary:
            continue
        columns = torch.arange(first - 1, len(ids) - 1, device=case.anatomy.device)
        logits_PV = logits_at(case.anatomy, case.inputs(ids), torch.zeros_like(columns), columns)
        wanted_P = torch.tensor(ids[first:], device=logits_PV.device)
        total += float(torch.nn.functional.cross_entropy(logits_PV, wanted_P, reduction="sum"))
        count += len(wanted_P)
    return total / count if count else 0.0


def eos(case: Case) -> Outcome:
    """What ends a text, whether the checkpoint agrees, and whether it is appended to texts."""
    tokenizer = case.tokenizer
    own = tokenizer.eos_token_id
    named = getattr(getattr(case.model, "generation_config", None), "eos_token_id", None)
    theirs = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    appended = own is not None and list(tokenizer("Paris")["input_ids"])[-1:] == [own]
    values = {"id": own, "checkpoint": theirs, "appended": appended}
    tail = "; it appends it to texts, where it is dropped again" if appended else ""
    if own is None and not theirs:
        advice = "Generated answers run to their full length; set eos_token in tokenizer_config.json if the model has one."
        return note("none", advice, **values)
    if own is not None and theirs and own not in theirs:
        advice = "Both end a generated answer; if the model goes on behind its answers, correct generation_config.json."
        return note(f"{tokenizer.eos_token} ({own}), while the checkpoint ends texts at {theirs}{tail}", advice, **values)
    return ok(f"{tokenizer.eos_token} ({own}){tail}" if own is not None else f"{theirs}, by the checkpoint", **values)


def pad(case: Case) -> Outcome:
    """What rows are padded with, and whether the model has an embedding for it."""
    tokenizer, used = case.tokenizer, case.encoder.pad
    own = tokenizer.pad_token_id
    instead = "EOS" if used == tokenizer.eos_token_id else "0"
    how = "its own" if own is not None else f"none of its own: {instead} is used"
    values = {"id": used, "own": own}
    if case.found is not None and used >= case.found.vocabulary:
        advice = (
            f"Padded rows fail, for the model has {case.found.vocabulary} embeddings: remove pad_token from "
            "tokenizer_config.json (EOS is then used), or resize the embeddings."
        )
        return off(f"{tokenizer.pad_token} ({used}) has no embedding", advice, **values)
    return ok(f"{tokenizer.convert_ids_to_tokens(used)} ({used}), {how}; masked or unseen everywhere", **values)


def answers(case: Case) -> Outcome:
    """Whether ``prompt + " " + answer`` is the prompt's tokens and then the same answer's tokens behind every prompt."""
    encoder = case.encoder
    moved, varying = [], []
    for answer in _ANSWERS:
        seen: dict[tuple[int, ...], str] = {}
        for prompt in _PROMPTS:
            ids, _, first = encoder.with_target(prompt, answer)
            if list(encoder.encode(prompt)[0]) != list(ids[:first]):
                moved.append(f"{prompt} {answer}")
            seen.setdefault(tuple(ids[first:]), prompt)
        if len(seen) > 1:
            varying.append(answer)
    values = {"prompt_changes": moved, "answer_varies": varying, "tried": len(_PROMPTS) * len(_ANSWERS)}
    if moved:
        advice = (
            "Teacher-forced scores see another prompt than generated answers do; rely on the generated ones, or end prompts "
            "with a whole word."
        )
        told = f"{len(moved)} of {values['tried']} prompts end in other tokens once an answer follows: {moved[0]!r}"
        return off(told, advice, **values)
    if varying:
        advice = "Targets are still placed right, by character offsets; only their number of tokens differs between prompts."
        return note(f"{', '.join(map(repr, varying))}: other tokens behind another prompt", advice, **values)
    example = encoder.tokenizer.convert_ids_to_tokens(_tail(case, _PROMPTS[0], _ANSWERS[1]))
    return ok(f"the same behind every prompt; {_ANSWERS[1]!r} is {' '.join(example)}", **values)


def _tail(case: Case, prompt: str, answer: str) -> list[int]:
    ids, _, first = case.encoder.with_target(prompt, answer)
    return list(ids[first:])


def round_trip(case: Case) -> Outcome:
    """Whether text comes back from encoding and decoding as it was, but for a blank at its start."""
    lost: dict[str, Any] = {}
    for what, text in TEXTS.items():
        back = decoded(case.tokenizer, case.encoder.encode(text)[0])
        if back.strip() != text:
            lost[what] = back
    if not lost:
        return ok("accents, other scripts, signs and digits come back as they were", changed={})
    what, back = next(iter(lost.items()))
    told = f"{', '.join(lost)} changed: {TEXTS[what]!r} comes back as {back!r}"
    if "plain text" in lost or "digits" in lost:
        advice = "Answers that are compared as text will not match; make sure that the tokenizer is this model's own."
        return off(told, advice, changed=lost)
    return note(told, "Facts about names with such characters cannot be told apart; leave them out.", changed=lost)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """Text of some tokens, special ones left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


NAME = "tokenizer"
CHECKS = (
    Check("kind", kind, needs_anatomy=False),
    Check("BOS", bos, needs_anatomy=False, needs_encoder=True),
    Check("EOS", eos, needs_anatomy=False),
    Check("padding token", pad, needs_anatomy=False, needs_encoder=True),
    Check("answers", answers, needs_anatomy=False, needs_encoder=True),
    Check("round trip", round_trip, needs_anatomy=False, needs_encoder=True),
)
