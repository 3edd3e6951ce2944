"""Teacher-forced scores of answers: mean token negative log-likelihood and argmax correctness, in batches by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.batch.records import RecordScores, Tally, asked
from lit_edit.errors import MalformedRecord
from lit_edit.micro_batches import Room, halving
from lit_edit.passes.forward import frozen, logits_at
from lit_edit.passes.packing import packed_logits_at
from lit_edit.passes.rows import Pass, passes
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest

_REMEMBERED = 2**16
"""Locality rows whose answers by the unedited model are kept, a few hundred bytes each; beyond, all are asked anew."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of ``n`` answers, on the CPU."""

    nll: Tensor  # [n] mean over the answer's tokens of -log p, float32
    correct: Tensor  # [n] whether every token of the answer is the argmax, bool
    tokens: Tensor  # [n] number of tokens scored
    predicted: tuple[tuple[int, ...], ...]
    """The argmax at every token of each answer."""
    right: tuple[tuple[bool, ...], ...]
    """Whether it is the answer's token."""


@dataclass
class _Found:
    """What is known of answers so far."""

    nll: Tensor
    predicted: list[tuple[int, ...]]
    right: list[tuple[bool, ...]]


class Scorer:
    """Scores text with a model without leaving a trace: no gradients, evaluation mode, no random numbers, modes restored.

    It may be kept while the model's weights change. Remembered is what the unedited weights say at locality rows.

    Args:
        anatomy: the model.
        encoder: its tokenizer.
        tokens_at_once: padded tokens per forward pass; halved where memory runs out.
    """

    def __init__(self, anatomy: Anatomy, encoder: Encoder, tokens_at_once: int = 8192) -> None:
        self.anatomy, self.encoder = anatomy, encoder
        # Logits of a large vocabulary outweigh everything else: at most 1 GiB of them in float32.
        self.tokens_at_once = min(tokens_at_once, max(256, 2**28 // anatomy.vocabulary))
        self._unedited: Callable[[], AbstractContextManager[object]] | None = None
        self._said: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
        self._rooms = {True: Room(), False: Room()}
        """For passes in packs, and others."""

    def answers(self, pairs: Sequence[tuple[str, str]]) -> AnswerScores:
        """Score ``(prompt, answer)`` pairs; the answer follows the prompt after one blank.

        Raises:
            MalformedRecord: if an answer or a prompt has no token.
        """
        return self.rows([self._row(prompt, answer) for prompt, answer in pairs])

    def _row(self, prompt: str, answer: str) -> tuple[list[int], int]:
        ids, _, first = self.encoder.with_target(prompt, answer)
        return ids, first

    def texts(self, rows: Sequence[Sequence[int]]) -> AnswerScores:
        """Score every token of token-id rows but the first, which has nothing before it."""
        return self.rows([(list(row), 1) for row in rows])

    def generate(self, prompts: Sequence[str], tokens: int, until: Sequence[str] = ()) -> list[str]:
        """Greedy continuations of some prompts; see :func:`lit_edit.passes.generation.generate`."""
        from lit_edit.passes.generation import generate

        return generate(self.anatomy, self.encoder, prompts, tokens, until)

    def requests(
        self, requests: Sequence[EditRequest], unedited: Callable[[], AbstractContextManager[object]] | None = None
    ) -> list[RecordScores]:
        """Score edits on every prompt of each record; see :meth:`lit_edit.batch.records.Tally.judge` for what is computed.

        On edit prompt and paraphrases the wanted answer is the new one and the other the true one, on neighbourhood prompts it
        is the other way round; a record without a true answer has no comparison on its own prompts. Locality prompts are
        compared with what the unedited model says at the same tokens. A prompt whose answers cannot be tokenised is left out.

        Args:
            requests: the edits.
            unedited: a context in which the model shows its unedited weights, always the same ones for one callable: what they
                say is remembered. Without it locality is not scored.
        """
        rows: list[tuple[list[int], int]] = []

        def plan(prompt: str, answers: Sequence[str]) -> list[int] | None:
            try:
                found = [self._row(prompt, answer) for answer in answers]
            except MalformedRecord:
                return None
            rows.extend(found)
            return list(range(len(rows) - len(found), len(rows)))

        plans = []
        for request in requests:
            own = []
            for what in asked(request):
                at = plan(what.prompt, [*what.wanted, *([] if what.other is None else [what.other])])
                if at is not None:
                    own.append((what, at))
            plans.append(own)
        scores = self.rows(rows)
        nll = scores.nll.tolist()
        tallies = [Tally() for _ in requests]
        for tally, own in zip(tallies, plans, strict=True):
            for what, at in own:
                wanted = [(nll[index], scores.right[index]) for index in at[: len(what.wanted)]]
                tally.judge(what, wanted, None if what.other is None else nll[at[-1]])
        if unedited is not None:
            self._locality(requests, tallies, unedited)
        return [tally.close() for tally in tallies]

    def _locality(
        self,
        requests: Sequence[EditRequest],
        tallies: Sequence[Tally],
        unedited: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Share of the tokens of a locality answer at which the model says what it said before it was edited."""
        rows, owners = [], []
        for tally, request in zip(tallies, requests, strict=True):
            for kind, prompt, answer in request.locality:
                try:
                    rows.append(self._row(prompt, answer))
                except MalformedRecord:
                    continue
                owners.append((tally, kind))
        if not rows:
            return
        now = self.rows(rows).predicted
        before = self._before(rows, unedited)
        for (tally, kind), ours, theirs in zip(owners, now, before, strict=True):
            same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
            for name in ("locality", f"locality_{kind}"):
                tally.add(name, "agreement", same)

    def _before(
        self, rows: Sequence[tuple[list[int], int]], unedited: Callable[[], AbstractContextManager[object]]
    ) -> list[tuple[int, ...]]:
        """What the unedited model says at every token of rows, asked once per row as long as ``unedited`` is the same."""
        if unedited != self._unedited:  # bound methods are made anew at every access, but compare equal
            self._unedited, self._said = unedited, {}
        keys = [(tuple(ids), first) for ids, first in rows]
        missing = [key for key in dict.fromkeys(keys) if key not in self._said]
        if missing:
            if len(self._said) + len(missing) > _REMEMBERED:
                missing, self._said = list(dict.fromkeys(keys)), {}
            with unedited():
                found = self.rows([(list(ids), first) for ids, first in missing]).predicted
            self._said.update(zip(missing, found, strict=True))
        return [self._said[key] for key in keys]

    @torch.no_grad()
    def rows(self, rows: Sequence[tuple[list[int], int]]) -> AnswerScores:
        """Score token-id rows, each from a given token on.

        The last token is only ever a label and never fed; rows that another one begins with are read off that one, and rows
        that share their beginning share a pack (see :mod:`lit_edit.passes.packing`) where that saves work and the model allows
        it.

        Args:
            rows: token ids and the index (at least 1) of the first one to score.

        Raises:
            OutOfMemory: if a single row is too large.
        """
        count = len(rows)
        found = _Found(torch.zeros(count), [()] * count, [()] * count)
        fed, place = _merged([tuple(ids[:-1]) for ids, _ in rows])
        held: list[list[int]] = [[] for _ in fed]
        for index, at in enumerate(place):
            held[at].append(index)
        with frozen(self.anatomy.model):
            for one in passes(self.anatomy, fed, self.tokens_at_once):
                self._score(one, fed, held, rows, found)
        tokens = torch.tensor([len(part) for part in found.right], dtype=torch.long)
        correct = torch.tensor([all(part) for part in found.right], dtype=torch.bool)
        return AnswerScores(found.nll, correct, tokens, tuple(found.predicted), tuple(found.right))

    def _score(
        self,
        whole: Pass,
        fed: Sequence[tuple[int, ...]],
        held: Sequence[Sequence[int]],
        rows: Sequence[tuple[list[int], int]],
        found: _Found,
    ) -> None:
        """Run a pass, or its halves where memory does not suffice, and read off the answers that its rows hold."""

        def run(items: list[int]) -> None:
            one = whole if len(items) == len(whole.where) else whole.of(items, fed)
            mine: list[int] = []
            spots: dict[tuple[int, int], int] = {}  # two answers to one prompt begin at one position
            spot_P: list[int] = []
            labels: list[int] = []
            for at, (line, columns) in one.where.items():
                for index in held[at]:
                    ids, first = rows[index]
                    mine.append(index)
                    labels.extend(ids[first:])
                    own = columns[first - 1 : len(ids) - 1]
                    spot_P.extend(spots.setdefault((line, column), len(spots)) for column in own)
            nll_P, best_P = self._at(one, fed, list(spots), spot_P, labels)
            start = 0
            for index in mine:
                ids, first = rows[index]
                size = len(ids) - first
                found.nll[index] = nll_P[start : start + size].mean()
                found.predicted[index] = tuple(best_P[start : start + size])
                found.right[index] = tuple(a == b for a, b in zip(found.predicted[index], ids[first:], strict=True))
                start += size

        room, rows_of = self._rooms[bool(whole.packs)], list(whole.where)
        halving(rows_of, run, "the score of one text", room=room, cost=lambda items: sum(len(fed[at]) for at in items))

    def _at(
        self,
        one: Pass,
        fed: Sequence[tuple[int, ...]],
        spots: list[tuple[int, int]],
        spot_P: list[int],
        labels: list[int],
    ) -> tuple[Tensor, list[int]]:
        """-log p of labels and the argmax at distinct positions ``spots`` of a pass, given by number in ``spot_P``."""
        device = self.anatomy.device
        row_U, column_U = torch.tensor(spots, device=device).T
        read = packed_logits_at if one.packs else logits_at
        logits_UV = read(self.anatomy, one.inputs(fed, self.encoder.pad, device, self.anatomy.dtype), row_U, column_U)
        at_P, label_P = torch.tensor(spot_P, device=device), torch.tensor(labels, device=device)
        # The greatest logit comes off first, in place: log p as log_softmax forms it, which does not cancel for a confident
        # answer as the logit less logsumexp would, without another table of the vocabulary.
        top_U, best_U = logits_UV.max(-1)
        below_UV = logits_UV.sub_(top_U[:, None])
        below_P = below_UV[at_P, label_P]
        nll_P = below_UV.exp_().sum(-1).log()[at_P] - below_P
        return nll_P.cpu(), best_U[at_P].tolist()


def _merged(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Distinct rows without those that another begins with, and where each row's tokens are found.

    A causal model says the same at a position whatever follows: two answers to one prompt mostly share a row.

    >>> _merged([(1, 2), (1, 2, 3), (4,), (1, 2)])
    ([(4,), (1, 2, 3)], [1, 1, 0, 1])
    """
    kept: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    # In descending order a row stands right behind those that begin with it.
    for row in sorted(set(rows), reverse=True):
        if not kept or kept[-1][: len(row)] != row:
            kept.append(row)
        place[row] = len(kept) - 1
    return kept, [place[row] for row in rows]
