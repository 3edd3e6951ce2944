"""Continuing prompts: greedy or top-k, many at once, with nothing of a checkpoint's own generation settings.

Legend: B = rows, T = positions, V = vocabulary.

A text depends on its own prompt (and, sampled, on its number and the seed) alone, not on what it was batched with, up to
float rounding: rows are padded on the left and the model's own ``generate`` masks the padding and counts positions from the
first real token. A family whose numbers move with the padding all the same (convolutions, recurrences) is found by trying and
gets batches of equally long prompts instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError, MalformedRecord, brief
from lit_edit.micro_batches import Room, halving
from lit_edit.passes.forward import frozen
from lit_edit.passes.trial import Trial
from lit_edit.prompts import Encoder

_SAME = 0.1
"""Most that padding may move a row's logits, as a share of their spread: above rounding in bfloat16, below a mistake."""


def generate(
    anatomy: Anatomy,
    encoder: Encoder,
    prompts: Sequence[str],
    tokens: int,
    until: Sequence[str] = (),
    top_k: int | None = None,
    seed: int = 0,
    total: bool = False,
    tokens_at_once: int = 8192,
) -> list[str]:
    """Continuations of several prompts, without the prompts.

    Weights, modes, the tokenizer, the model's generation settings and every random state are the same afterwards. A text ends
    at any end token of the tokenizer or of the checkpoint, which is not part of it, or where the model has no position left.

    Args:
        anatomy: the model.
        encoder: its tokenizer.
        prompts: complete texts to continue.
        tokens: most tokens to add to each.
        until: strings that end a text where the first of them occurs; neither it nor what follows is part of the text.
        top_k: ``None`` takes the likeliest token at every step; a number samples among that many, renormalised.
        seed: of the sampling. Text ``i`` has a generator of its own, of ``seed`` and ``i``; tokens are drawn on the CPU, so
            that a seed gives the same texts on every device that computes the same numbers.
        total: count the prompt's tokens into ``tokens`` (a prompt that long gets an empty continuation).
        tokens_at_once: padded tokens per batch, new ones included; halved where memory runs out.

    Raises:
        EditError: if ``tokens`` or ``top_k`` is not positive, a string of ``until`` is empty, or the model cannot generate.
        MalformedRecord: if a prompt has no token, or more than the model has positions.
    """
    if tokens < 1 or (top_k is not None and top_k < 1) or "" in until:
        raise EditError(f"generation needs tokens and top_k >= 1 and no empty 'until', got {tokens}, {top_k}, {list(until)}")
    if not callable(getattr(anatomy.model, "generate", None)):
        raise EditError(f"{type(anatomy.model).__name__} has no generate(); generated answers need a model that has one")
    rows = [_ids(anatomy, encoder, prompt) for prompt in prompts]
    room = [min(tokens - len(row) * total, anatomy.positions - len(row)) for row in rows]
    order = sorted((i for i in range(len(rows)) if room[i] > 0), key=lambda i: len(rows[i]))
    ends = end_tokens(anatomy, encoder)
    texts = [""] * len(rows)
    with frozen(anatomy.model), _plain(anatomy.model):
        budget = _affordable(anatomy, tokens_at_once)
        apart = len({len(rows[i]) for i in order}) > 1 and not _pads_well(anatomy, encoder)

        def some(batch: list[int]) -> list[list[int]]:
            stop = _Stop(encoder, [rows[i] for i in batch], [room[i] for i in batch], until)
            draw = None if top_k is None else _TopK(top_k, [seed * 1_000_003 + i for i in batch])
            new = _run(anatomy, encoder, [rows[i] for i in batch], max(room[i] for i in batch), ends, stop, draw).sequences
            answers: list[list[int]] = new[:, len(rows[batch[-1]]) :].tolist()
            return answers

        def padded(batch: list[int]) -> int:
            return len(batch) * (len(rows[batch[-1]]) + max(room[i] for i in batch))

        what, fits = ("one text to continue", "fewer tokens to add or a larger device help"), Room()
        for whole in _batches(order, rows, room, budget, anatomy.positions, apart):
            for batch, new in halving(whole, some, *what, fits, padded):
                for i, row in zip(batch, new, strict=True):
                    row = row[: room[i]]
                    first = next((at for at, token in enumerate(row) if token in ends), len(row))
                    texts[i] = cut(continuation(encoder, rows[i], row[:first]), until)
    return texts


def end_tokens(anatomy: Anatomy, encoder: Encoder) -> set[int]:
    """Tokens that end a text: the tokenizer's own and all those the checkpoint's generation settings name."""
    settings = getattr(anatomy.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = list(named) if isinstance(named, list | tuple) else [named]
    return {int(token) for token in (*found, encoder.tokenizer.eos_token_id) if token is not None}


def continuation(encoder: Encoder, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Text that new tokens add to a prompt's; decoded together, since some tokenizers drop a text's leading blank."""

    def text(ids: Sequence[int]) -> str:
        decoded = encoder.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    head, both = text(prompt), text([*prompt, *new])
    return both[len(head) :] if both.startswith(head) else text(new)


def cut(text: str, until: Sequence[str]) -> str:
    r"""A text up to the first occurrence of any of some strings.

    Example:
        >>> cut(" Paris. It is\nbig", ["\n", "."])
        ' Paris'
    """
    return text[: min((at for at in map(text.find, until) if at >= 0), default=len(text))]


# ------------------------------------------------------------------------------------------------ one batch


def _ids(anatomy: Anatomy, encoder: Encoder, prompt: str) -> list[int]:
    ids, _ = encoder.encode(prompt)
    if not ids:
        raise MalformedRecord("prompt", f"{brief(prompt, 200)} gives no token to continue")
    if len(ids) > anatomy.positions:
        raise MalformedRecord("prompt", f"is {len(ids)} tokens long, and the model takes {anatomy.positions}")
    return ids


def _batches(
    order: Sequence[int], rows: Sequence[list[int]], room: Sequence[int], budget: int, positions: int, apart: bool
) -> Iterator[list[int]]:
    """Batches of row numbers, shortest first; ``apart`` keeps lengths apart."""
    batch: list[int] = []
    new = 0
    for i in order:  # ascending length: the newest row is the longest of its batch
        longest, wider = len(rows[i]), max(new, room[i])
        full = (longest + wider) * (len(batch) + 1) > budget or longest + wider > positions
        if batch and (full or (apart and longest != len(rows[batch[0]]))):
            yield batch
            batch, wider = [], room[i]
        batch, new = [*batch, i], wider
    if batch:
        yield batch


def _affordable(anatomy: Anatomy, tokens_at_once: int) -> int:
    """Fewer tokens at once where the model spreads its vocabulary over every position: at most 1 GiB of float32 logits."""
    supports = getattr(anatomy.model, "_supports_logits_to_keep", None)
    if supports is not None and supports():
        return tokens_at_once
    return min(tokens_at_once, max(256, 2**28 // anatomy.vocabulary))


def _run(
    anatomy: Anatomy,
    encoder: Encoder,
    rows: Sequence[Sequence[int]],
    new: int,
    ends: set[int],
    stop: StoppingCriteria | None = None,
    draw: LogitsProcessor | None = None,
    logits: bool = False,
) -> Any:
    """What the model's ``generate`` returns for rows ``[B, T]`` padded on the left."""
    longest = max(len(row) for row in rows)
    pad = encoder.pad if encoder.pad < anatomy.vocabulary else 0
    ids_BT = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=anatomy.device)
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=anatomy.device)
    settings = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        return_dict_in_generate=True,
        output_logits=logits,
    )
    model: Any = anatomy.model
    return model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        generation_config=settings,
        logits_processor=LogitsProcessorList([] if draw is None else [draw]),
        stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
    )


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Take the checkpoint's generation settings away: ``generate`` fills in from them whatever a caller leaves open."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def tried_left_padding(anatomy: Anatomy, encoder: Encoder) -> Trial:
    """Whether padding on the left leaves a row's logits alone, tried on the prompt's end and a cached step.

    Two rows of nine tokens: next to any generation, trying anew is cheaper than remembering it for a model that may change.

    Returns:
        The largest difference of a logit, relative to the logits' standard deviation.
    """
    ids = [token % anatomy.vocabulary for token in range(5, 14)]
    with frozen(anatomy.model), _plain(anatomy.model):
        alone = _run(anatomy, encoder, [ids[3:]], 2, set(), logits=True)
        padded = _run(anatomy, encoder, [ids, ids[3:]], 2, set(), logits=True)
    apart = []
    for one_BV, two_BV in zip(alone.logits, padded.logits, strict=True):
        one, two = one_BV[0].float(), two_BV[1].float()
        apart.append((one - two).abs().max() / one.std())
        if one.argmax() != two.argmax():  # a near-tie: the next step continues another text
            break
    return Trial(float(torch.stack(apart).max()), _SAME)


def _pads_well(anatomy: Anatomy, encoder: Encoder) -> bool:
    return tried_left_padding(anatomy, encoder).same


class _Stop(StoppingCriteria):
    """Ends each row at its own number of new tokens, or once its text holds a string to stop at."""

    def __init__(self, encoder: Encoder, rows: Sequence[list[int]], room: Sequence[int], until: Sequence[str]) -> None:
        self.encoder, self.rows, self.room, self.until = encoder, rows, room, until
        self.start = max(len(row) for row in rows)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = [input_ids.shape[1] - self.start >= room for room in self.room]
        if self.until:
            for i, new in enumerate(input_ids[:, self.start :].tolist()):
                text = "" if done[i] else continuation(self.encoder, self.rows[i], new)
                done[i] = done[i] or any(end in text for end in self.until)
        return torch.tensor(done, device=input_ids.device)


class _TopK(LogitsProcessor):
    """Draws each row's next token with the row's own generator and leaves nothing else to choose."""

    def __init__(self, top_k: int, seeds: Sequence[int]) -> None:
        self.top_k = top_k
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.float().topk(min(self.top_k, scores.shape[-1]), dim=-1)
        p_BK = best.values.softmax(-1).cpu()
        # Of a model that a bad edit broke (NaN), any of the candidates will do: a probe must not end the run.
        p_BK = torch.where(p_BK.isfinite().all(-1, keepdim=True), p_BK, 1 / p_BK.shape[-1])
        at_B = torch.stack([torch.multinomial(p, 1, generator=g) for p, g in zip(p_BK, self.generators, strict=True)])
        picked_B1 = best.indices.gather(1, at_B.to(best.indices.device))
        return torch.full_like(scores, -torch.inf).scatter(1, picked_B1, 0.0)
