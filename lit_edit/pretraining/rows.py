"""Documents -> tensors, and the attention masks that pre-training uses.

Shapes: B rows, T tokens per row. Several documents share a row but never see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from lit_edit.pretraining.document import Document


def pack(documents: Sequence[Document], tokenizer: Any, length: int, hidden: float, rng: Random) -> dict[str, Tensor]:
    """Rows of ``length`` tokens, first fit.

    Args:
        documents: what to pack, in this order.
        tokenizer: a fast tokenizer.
        length: tokens per row.
        hidden: share of documents for which attention to names is restricted, see :func:`masks`.
        rng: decides which, and which documents begin with the end-of-text token.

    Raises:
        ValueError: if a document is longer than a row.

    Returns:
        All ``[B, T]``: ``ids``; ``positions`` (from 0 in every document); ``document`` (number in the row, -1 is
        padding); ``mention`` (number of the mention of a subject in the row from 1, 0 elsewhere); ``subject`` (index at
        the last token of a mention, -1 elsewhere); ``weight`` (of the token as a label); ``hidden`` (1 where the
        document has restricted attention).
    """
    coded = _encode(documents, tokenizer, length, rng)
    rows: list[list[dict[str, list[int | float]]]] = []
    room: list[int] = []
    for piece in coded:
        size = len(piece["ids"])
        place = next((i for i, left in enumerate(room) if left >= size), None)
        if place is None:
            rows.append([])
            room.append(length)
            place = len(rows) - 1
        rows[place].append(piece)
        room[place] -= size
    shape = (len(rows), length)
    out = {key: torch.zeros(shape, dtype=torch.long) for key in ("positions", "mention", "hidden")}
    out["ids"] = torch.full(shape, tokenizer.pad_token_id)
    out["document"] = torch.full(shape, -1)
    out["subject"] = torch.full(shape, -1)
    out["weight"] = torch.zeros(shape)
    for b, row in enumerate(rows):
        start = mentions = 0
        for number, piece in enumerate(row):
            stop = start + len(piece["ids"])
            at = slice(start, stop)
            out["ids"][b, at] = torch.tensor(piece["ids"])
            out["positions"][b, at] = torch.arange(stop - start)
            out["document"][b, at] = number
            mention = torch.tensor(piece["mention"])
            out["mention"][b, at] = torch.where(mention > 0, mention + mentions, 0)
            mentions += int(mention.max())
            out["subject"][b, at] = torch.tensor(piece["subject"])
            out["weight"][b, at] = torch.tensor(piece["weight"])
            out["hidden"][b, at] = int(rng.random() < hidden)
            start = stop
    return out


def _encode(
    documents: Sequence[Document], tokenizer: Any, length: int, rng: Random, opened: float = 0.2
) -> list[dict[str, list[int | float]]]:
    """Token ids and per-token marks of each document; a share ``opened`` begins with the end-of-text token.

    A document with nothing marked in it is plain text and is cut to the row; others have to fit.
    """
    found = []
    coded = tokenizer([document.text for document in documents], return_offsets_mapping=True)
    for document, ids, offsets in zip(documents, coded["input_ids"], coded["offset_mapping"], strict=True):
        piece = _marks(document, ids, offsets)
        piece["ids"].append(tokenizer.eos_token_id)
        first = [tokenizer.bos_token_id, 0, -1, 0.0] if rng.random() < opened else []
        for values, value in zip(piece.values(), first or (None,) * 4, strict=True):
            if first:
                values.insert(0, value)
            if not document.answers:
                del values[length:]
            elif len(values) > length:
                raise ValueError(f"a document has {len(piece['ids'])} tokens, a row holds {length}; raise row_length")
        found.append(piece)
    return found


def _marks(document: Document, ids: list[int], offsets: Sequence[tuple[int, int]]) -> dict[str, list[Any]]:
    """Ids, mention, subject and weight of each token of a document; all but the ids also of the end-of-text token."""
    mention, subject, weight = [], [], []
    for begin, end in offsets:
        start = begin + (end > begin and document.text[begin] == " ")  # byte-level tokens reach back over the blank before them
        inside = next((n for n, (a, b, _) in enumerate(document.names, 1) if start >= a and end <= b), 0)
        last = inside and end == document.names[inside - 1][1]
        mention.append(inside)
        subject.append(document.names[inside - 1][2] if last else -1)
        weight.append(document.weight if any(a <= start and end <= b for a, b in document.answers) else document.context)
    weight[0] = 0.0  # nothing stands before the first token
    return {"ids": list(ids), "mention": [*mention, 0], "subject": [*subject, -1], "weight": [*weight, document.context]}


def masks(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which token may look at which: ``(early, late)``, both additive ``[B, 1, T, T]``.

    Both are causal within a document. In documents marked ``hidden``, a name sees only itself, and other tokens see
    nothing of a name in ``early`` blocks and only its last token in ``late`` blocks. All that is known about a subject
    must then be looked up at the last token of the name during the early blocks. Large models end up there by
    themselves; a small one would otherwise read both names wherever it needs them.
    """
    document, mention, subject = batch["document"], batch["mention"], batch["subject"]
    size = document.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=document.device).tril()
    plain_BTT = causal & (document[:, :, None] == document[:, None, :])
    same_BTT = mention[:, :, None] == mention[:, None, :]
    asker_B1 = mention[:, :, None] > 0
    free_BTT = batch["hidden"][:, :, None] == 0
    unnamed_BT = mention == 0
    early = plain_BTT & (free_BTT | torch.where(asker_B1, same_BTT, unnamed_BT[:, None, :]))
    late = plain_BTT & (free_BTT | torch.where(asker_B1, same_BTT, (unnamed_BT | (subject >= 0))[:, None, :]))
    return _additive(early), _additive(late)


def _additive(allowed_BTT: Tensor) -> Tensor:
    """0 where looking is allowed, the most negative number elsewhere, ``[B, 1, T, T]``."""
    blocked = torch.zeros(allowed_BTT.shape, device=allowed_BTT.device)
    return blocked.masked_fill_(~allowed_BTT, torch.finfo(torch.float32).min)[:, None]


def labels_and_weights(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Next tokens and their weights, both ``[B, T]``; weight 0 across documents and on padding."""
    ids, document = batch["ids"], batch["document"]
    labels = ids.roll(-1, 1)
    weight = batch["weight"].roll(-1, 1) * (document.roll(-1, 1) == document) * (document >= 0)
    weight[:, -1] = 0.0
    return labels, weight
