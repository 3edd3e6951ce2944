"""Teacher-forced scores of answers: mean token negative log-likelihood and argmax correctness, in batches by length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.errors import MalformedRecord
from lit_edit.forward import frozen, logits_at
from lit_edit.prompts import Encoder, right_pad
from lit_edit.request import EditRequest

DECODING = "teacher_forced"
"""How answers are scored here: the answer's own tokens are fed, none is generated."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of ``n`` answers, on the CPU."""

    nll: Tensor  # [n] mean over the answer's tokens of -log p, float32
    correct: Tensor  # [n] whether every token of the answer is the argmax, bool
    tokens: Tensor  # [n] number of tokens scored


@dataclass(frozen=True)
class RecordScores:
    """Scores of one edit; each list holds one entry per prompt of that kind, empty where the record has none."""

    efficacy_success: list[float]
    efficacy_accuracy: list[float]
    efficacy_probability: list[float]
    paraphrase_success: list[float]
    paraphrase_accuracy: list[float]
    neighbourhood_success: list[float]
    neighbourhood_accuracy: list[float]


class Scorer:
    """Scores text with a model without leaving a trace: no gradients, evaluation mode, no random numbers, modes restored.

    Args:
        anatomy: the model.
        encoder: its tokenizer.
        tokens_at_once: padded tokens per forward pass.
    """

    def __init__(self, anatomy: Anatomy, encoder: Encoder, tokens_at_once: int = 8192) -> None:
        self.anatomy, self.encoder = anatomy, encoder
        # Logits of a large vocabulary outweigh everything else: at most 1 GiB of them in float32.
        self.tokens_at_once = min(tokens_at_once, max(256, 2**28 // anatomy.vocabulary))

    def answers(self, pairs: Sequence[tuple[str, str]]) -> AnswerScores:
        """Score ``(prompt, answer)`` pairs; the answer follows the prompt after one blank.

        Raises:
            MalformedRecord: if an answer or a prompt has no token.
        """
        return self._score([self._row(prompt, answer) for prompt, answer in pairs])

    def _row(self, prompt: str, answer: str) -> tuple[list[int], int]:
        ids, _, first = self.encoder.with_target(prompt, answer)
        return ids, first

    def texts(self, rows: Sequence[Sequence[int]]) -> AnswerScores:
        """Score every token of token-id rows but the first, which has nothing before it."""
        return self._score([(list(row), 1) for row in rows])

    def requests(self, requests: Sequence[EditRequest]) -> list[RecordScores]:
        """Score edits: probability comparison ("success") and argmax ("accuracy") on every prompt of each record.

        Success compares mean token NLLs, a tie is a failure: on edit prompt and paraphrases the new answer has to be
        likelier than the true one, on neighbourhood prompts the answer that should survive likelier than the new one. A
        record without a true answer has no success on its own prompts, only accuracy; a prompt whose answers cannot be
        tokenised is left out.
        """
        rows: list[tuple[list[int], int]] = []
        plans: list[dict[str, list[tuple[int, int | None]]]] = []
        for request in requests:
            true, new = request.target_true, request.target_new
            asked: dict[str, list[tuple[str, str, str | None]]] = {
                "efficacy": [(request.text, new, true)],
                "paraphrase": [(text, new, true) for text in request.paraphrases],
                "neighbourhood": [(text, answer, new) for text, answer in request.neighbourhood],
            }
            plan: dict[str, list[tuple[int, int | None]]] = {}
            for kind, prompts in asked.items():
                plan[kind] = []
                for prompt, wanted, other in prompts:
                    try:
                        pair = [self._row(prompt, answer) for answer in (wanted, other) if answer is not None]
                    except MalformedRecord:
                        continue
                    plan[kind].append((len(rows), len(rows) + 1 if len(pair) > 1 else None))
                    rows += pair
            plans.append(plan)
        scores = self._score(rows)
        nll, correct = scores.nll.tolist(), scores.correct.tolist()

        def success(plan: list[tuple[int, int | None]]) -> list[float]:
            return [float(nll[wanted] < nll[other]) for wanted, other in plan if other is not None]

        def accuracy(plan: list[tuple[int, int | None]]) -> list[float]:
            return [float(correct[wanted]) for wanted, _ in plan]

        return [
            RecordScores(
                efficacy_success=success(plan["efficacy"]),
                efficacy_accuracy=accuracy(plan["efficacy"]),
                efficacy_probability=[math.exp(-nll[wanted]) for wanted, _ in plan["efficacy"]],
                paraphrase_success=success(plan["paraphrase"]),
                paraphrase_accuracy=accuracy(plan["paraphrase"]),
                neighbourhood_success=success(plan["neighbourhood"]),
                neighbourhood_accuracy=accuracy(plan["neighbourhood"]),
            )
            for plan in plans
        ]

    @torch.no_grad()
    def _score(self, rows: Sequence[tuple[list[int], int]]) -> AnswerScores:
        count = len(rows)
        nll, correct, tokens = torch.zeros(count), torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
        by_length = sorted(range(count), key=lambda index: len(rows[index][0]))
        device = self.anatomy.device
        with frozen(self.anatomy.model):
            for batch in self._batches(by_length, rows):
                picks = [(r, c) for r, index in enumerate(batch) for c in range(rows[index][1] - 1, len(rows[index][0]) - 1)]
                row_P = torch.tensor([r for r, _ in picks], device=device)
                column_P = torch.tensor([c for _, c in picks], device=device)
                label_P = torch.tensor([rows[batch[r]][0][c + 1] for r, c in picks], device=device)
                # The last token is only ever a label, but it is fed too: dropping it would change nothing but shapes.
                inputs = right_pad([rows[index][0] for index in batch], self.encoder.pad, device)
                log_p = logits_at(self.anatomy, inputs, row_P, column_P).log_softmax(-1)
                picked = log_p.gather(1, label_P[:, None])[:, 0]
                right = (log_p.argmax(-1) == label_P).float()
                size = torch.zeros(len(batch), device=device).index_add(0, row_P, torch.ones_like(picked))
                total = torch.zeros(len(batch), device=device).index_add(0, row_P, -picked)
                hits = torch.zeros(len(batch), device=device).index_add(0, row_P, right)
                at = torch.tensor(batch)
                nll[at], correct[at], tokens[at] = (total / size).cpu(), (hits == size).cpu(), size.long().cpu()
        return AnswerScores(nll, correct, tokens)

    def _batches(self, order: list[int], rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in order:  # ascending length: the newest row is the longest of its batch
            if not batches or len(rows[index][0]) * (len(batches[-1]) + 1) > self.tokens_at_once:
                batches.append([])
            batches[-1].append(index)
        return batches
