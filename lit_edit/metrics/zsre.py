"""Token accuracy, as ZsRE is scored: the share of an answer's tokens that are the argmax under teacher forcing.

Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.metrics.functional import record_means
from lit_edit.micro_batches import halving
from lit_edit.passes.forward import frozen, logits_at
from lit_edit.prompts import Encoder, right_pad
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer


@dataclass(frozen=True)
class TokenScores:
    """Which answer tokens of one record were right, over all prompts of a kind; empty where the record has none."""

    rewrite: tuple[bool, ...]
    paraphrase: tuple[bool, ...]
    neighbourhood: tuple[bool, ...]


@dataclass(frozen=True)
class TokenRow:
    """One prompt whose single next token is judged."""

    prompt: str
    target: str
    """Text whose first token has to come."""


def token_accuracy(right: Sequence[Sequence[bool]]) -> float:
    r"""Mean over records of the share of right tokens: :math:`\frac1{|R|} \sum_r \frac1{q_r} \sum_i \mathbb 1[t_i = \arg\max]`.

    Records without a token are left out; ``nan`` if none has any.

    Example:
        >>> token_accuracy([[True, False], [True], []])
        0.75
    """
    means = record_means(right)
    return float(means.mean()) if len(means) else float("nan")


def token_scores(scorer: Scorer, requests: Sequence[EditRequest], legacy: bool = False) -> list[TokenScores]:
    """Right answer tokens on edit prompt, paraphrases and neighbourhood prompts of every record.

    One teacher-forced row per prompt and answer gives all of an answer's tokens. The neighbourhood is judged by the answer in
    the record, not by what the model said before the edit.

    Args:
        scorer: the model.
        requests: the records; a neighbourhood prompt of ZsRE ends with the ``?`` that the reader adds.
        legacy: feed what the released MEMIT and AlphaEdit code feeds, one row per answer token; see :func:`legacy_rows`.

    Raises:
        MalformedRecord: if a prompt or an answer has no token (without ``legacy``).
    """
    if legacy:
        return _legacy_scores(scorer, requests)
    pairs: list[list[tuple[str, str]]] = []
    for request in requests:
        pairs.append([(request.text, request.target_new)])
        pairs.append([(text, request.target_new) for text in request.paraphrases])
        pairs.append(list(request.neighbourhood))
    right = iter(scorer.answers([pair for group in pairs for pair in group]).right)
    found = [tuple(token for _ in group for token in next(right)) for group in pairs]
    return [TokenScores(*found[start : start + 3]) for start in range(0, len(found), 3)]


def leading(encoder: Encoder) -> int:
    """Number of special tokens that a tokenizer puts in front of a text (1 with a BOS)."""
    _, spans = encoder.encode("a")
    return next((at for at, (start, end) in enumerate(spans) if end > start), 0)


def legacy_rows(encoder: Encoder, prompts: Sequence[str], answer: str) -> list[TokenRow]:
    r"""Rows of prompts that share an answer, as the released code builds them for edit prompt and paraphrases.

    For token :math:`t_i` of ``" " + answer``: ``prompt + decode(t_0 .. t_{i-1})`` with target ``decode(t_i)``. Where the
    tokenizer puts a BOS in front (the code asks for "llama" in the path) it is dropped from the answer and one more blank goes
    between prompt and tokens from the second token on, which makes two of them unless ``decode`` strips the first.

    Args:
        encoder: the tokenizer.
        prompts: complete prompts, one after the other in the result.
        answer: the answer without a leading blank.
    """
    begins = leading(encoder)
    ids = _tokens(encoder, f" {answer}")[begins:]
    blank = " " if begins else ""
    return [
        TokenRow(prompt + (blank if i else "") + _text(encoder, ids[:i]), _text(encoder, ids[i : i + 1]))
        for prompt in prompts
        for i in range(len(ids))
    ]


def legacy_neighbourhood_rows(encoder: Encoder, prompt: str, answer: str) -> list[TokenRow]:
    """Rows of one neighbourhood prompt as the released data set class builds them.

    The answer's BOS is *not* dropped here: with such a tokenizer the first item asks the model to say BOS, which it never does,
    and the prompts of all later items hold BOS as text. Their scores are too low by that.

    Args:
        encoder: the tokenizer.
        prompt: the complete prompt, with its ``?``.
        answer: the answer without a leading blank.
    """
    ids = _tokens(encoder, f" {answer}")
    return [TokenRow(prompt + _text(encoder, ids[:i]), _text(encoder, ids[i : i + 1])) for i in range(len(ids))]


def _legacy_scores(scorer: Scorer, requests: Sequence[EditRequest]) -> list[TokenScores]:
    encoder = scorer.encoder
    groups: list[list[TokenRow]] = []
    for request in requests:
        groups.append(legacy_rows(encoder, [request.text], request.target_new))
        groups.append(legacy_rows(encoder, request.paraphrases, request.target_new))
        groups.append(
            [row for text, answer in request.neighbourhood for row in legacy_neighbourhood_rows(encoder, text, answer)]
        )
    margins = iter(legacy_margins(scorer, [row for group in groups for row in group]).tolist())
    found = [tuple(next(margins) >= 0 for _ in group) for group in groups]
    return [TokenScores(*found[start : start + 3]) for start in range(0, len(found), 3)]


def legacy_margins(scorer: Scorer, rows: Sequence[TokenRow]) -> Tensor:
    """Logit of each row's wanted token minus the best other one, ``[rows]`` on the CPU: right where it is not negative.

    The wanted token is the first one of ``target`` tokenised anew (behind a BOS, if there is one).
    """
    begins = leading(scorer.encoder)
    prompts = [_tokens(scorer.encoder, row.prompt) for row in rows]
    wanted = [(_tokens(scorer.encoder, row.target) + [scorer.encoder.pad] * (begins + 1))[begins] for row in rows]
    found = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda at: len(prompts[at]))
    with torch.no_grad(), frozen(scorer.anatomy.model):

        def some(batch: list[int]) -> Tensor:
            logits_BV = next_token_logits(scorer.anatomy, [prompts[at] for at in batch], scorer.encoder.pad)
            return margins(logits_BV, [wanted[at] for at in batch])

        for whole in _batches(order, prompts, scorer.tokens_at_once):
            for batch, part in halving(whole, some, "the score of one text"):
                found[batch] = part
    return found


def next_token_logits(anatomy: Anatomy, rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Logits after the last token of each row, ``[rows, vocabulary]``."""
    device = anatomy.device
    at_B = torch.tensor([len(row) - 1 for row in rows], device=device)
    return logits_at(anatomy, right_pad(rows, pad, device), torch.arange(len(rows), device=device), at_B)


def margins(logits_BV: Tensor, wanted: Sequence[int]) -> Tensor:
    """Wanted logit minus the best other, ``[rows]`` on the CPU; negative where the argmax is another token.

    Of equal logits the argmax takes the first: losing such a tie is the smallest negative number, never 0.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
        >>> (margins(logits, [1, 0, 1]) >= 0).tolist()
        [True, False, False]
    """
    at_B1 = torch.tensor(wanted, device=logits_BV.device)[:, None]
    gap = logits_BV.gather(1, at_B1)[:, 0] - logits_BV.scatter(1, at_B1, -torch.inf).max(-1).values
    lost = (logits_BV.argmax(-1) != at_B1[:, 0]) & (gap >= 0)  # a tie that the argmax gives to an earlier token
    return torch.where(lost, -torch.finfo(gap.dtype).tiny, gap).cpu()


def _batches(order: Sequence[int], rows: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for at in order:  # ascending length
        if not batches or len(rows[at]) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(at)
    return batches


def _tokens(encoder: Encoder, text: str) -> list[int]:
    return encoder.encode(text)[0]


def _text(encoder: Encoder, ids: Sequence[int]) -> str:
    tokenizer: Any = encoder.tokenizer
    return str(tokenizer.decode(list(ids)))
