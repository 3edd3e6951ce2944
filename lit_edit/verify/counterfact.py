"""Recorded CounterFact scores of one state of a model: per prompt, and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.errors import EditError, MalformedRecord
from lit_edit.metrics.edit_scores import EditScores
from lit_edit.metrics.functional import harmonic_mean, record_means
from lit_edit.metrics.zsre import leading, margins
from lit_edit.passes.forward import frozen, logits_at
from lit_edit.prompts import right_pad
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Tally, Tolerance, relative

TIE = 1e-4
"""Distance in nats below which two numbers of a float32 model count as equal."""

_KINDS = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighbourhood"}
_SCORINGS = {"success": "success", "diff": "difference", "acc": "accuracy"}
_MODEL = Tolerance(THROUGH_MODEL, "float32 model")
_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_EXACT = Tolerance(0.0, "exact")


@dataclass(frozen=True)
class Asked:
    """One recorded prompt with both answers."""

    prompt: str
    answers: dict[str, str]
    """``target_new`` and ``target_true``."""
    judged: str
    """The one whose tokens the recorded boolean is about."""


@dataclass(frozen=True)
class Fed:
    """What the reference feeds for a prompt and an answer, and where it reads which token."""

    ids: list[int]
    first: int
    """Position of the answer's first token: the number of the prompt's tokens when tokenised alone."""
    labels: list[int]
    """Tokens of the answer, tokenised alone behind a blank."""
    same: bool
    """Whether :class:`~lit_edit.scoring.Scorer` reads the same tokens at the same places."""


def _asked(record: dict[str, Any]) -> dict[str, list[Asked]]:
    wanted = record["requested_rewrite"]
    answers = {name: wanted[name]["str"] for name in ("target_new", "target_true")}
    prompts = {
        "rewrite": [wanted["prompt"].replace("{}", wanted["subject"])],
        "paraphrase": record["paraphrase_prompts"],
        "neighborhood": record["neighborhood_prompts"],
    }
    judged = {"rewrite": "target_new", "paraphrase": "target_new", "neighborhood": "target_true"}
    return {kind: [Asked(prompt, answers, judged[kind]) for prompt in prompts[kind]] for kind in _KINDS}


def add(tally: Tally, scorer: Scorer, records: Sequence[dict[str, Any]], found: dict[str, Any], state: str) -> None:
    """Compare NLLs, booleans and summaries of a state.

    Args:
        tally: where comparisons go.
        scorer: the model in that state.
        records: the CounterFact records.
        found: what ``eval.json`` holds for the state.
        state: how the table names it.
    """
    by_id = {record["case_id"]: record for record in records}
    kept, odd, flipped = [], 0, False
    for recorded in found["counterfact"]:
        record = by_id.get(recorded["case_id"])
        if record is None:
            raise EditError(f"eval.json names case {recorded['case_id']}, which records.json does not hold")
        kept.append(record)
        for kind, asked in _asked(record).items():
            where = f"case {recorded['case_id']} {kind}"
            probabilities, correct = recorded[f"{kind}_prompts_probs"], recorded[f"{kind}_prompts_correct"]
            if not len(asked) == len(probabilities) == len(correct):
                raise EditError(f"eval.json holds {len(probabilities)} scores of {where}, records.json {len(asked)} prompts")
            fed = {
                name: [_fed(scorer, one.prompt, one.answers[name]) for one in asked] for name in ("target_new", "target_true")
            }
            odd += sum(not one.same for group in fed.values() for one in group)
            nll: dict[str, Tensor] = {}
            right: dict[str, list[bool]] = {}
            for name, rows in fed.items():
                nll[name], right[name] = _scores(scorer, [(one.prompt, one.answers[name]) for one in asked], rows)
                theirs = torch.tensor([one[name] for one in probabilities])
                tally.add(f"NLL of {name}, {kind} {state}", relative(nll[name], theirs), _MODEL, where)
            for at, one in enumerate(asked):
                ours = right[one.judged][at]
                tied = ours != correct[at] and _tied(scorer, fed[one.judged][at])
                flipped |= tied
                error = float(ours != correct[at] and not tied)
                tally.add(f"answer is the argmax, {kind} {state}", error, _EXACT, f"{where} {at}")
                gap = probabilities[at]["target_true"] - probabilities[at]["target_new"]
                other = bool(nll["target_new"][at] < nll["target_true"][at]) != (gap > 0)
                flipped |= other and abs(gap) < TIE
                tally.add(f"new answer is likelier, {kind} {state}", float(other and abs(gap) >= TIE), _EXACT, f"{where} {at}")
    _recorded_summary(tally, found, state)
    if odd:
        tally.note(f"summary {state}", f"{odd} answers are cut into other tokens by the reference; scored as it does")
    elif flipped:
        tally.note(f"summary {state}", "a tie fell the other way here")
    else:
        _own_summary(tally, scorer, kept, found["counterfact_summary"], state)


def _fed(scorer: Scorer, prompt: str, answer: str) -> Fed:
    encoder = scorer.encoder
    ids, first = encoder.encode(f"{prompt} {answer}")[0], len(encoder.encode(prompt)[0])
    labels = encoder.encode(f" {answer}")[0][leading(encoder) :]
    if first + len(labels) > len(ids) + 1 or not labels:
        raise EditError(
            f"records.json: {answer!r} after {prompt!r} has fewer tokens than alone; the reference reads past its end"
        )
    try:
        own, _, start = encoder.with_target(prompt, answer)
    except MalformedRecord:
        return Fed(ids, first, labels, False)
    return Fed(ids, first, labels, own == ids and start == first and own[start:] == labels)


def _scores(scorer: Scorer, pairs: Sequence[tuple[str, str]], rows: Sequence[Fed]) -> tuple[Tensor, list[bool]]:
    """Mean NLL of each answer and whether all its tokens are the argmax, as the reference reads them."""
    if all(row.same for row in rows):
        scores = scorer.answers(pairs)
        return scores.nll, scores.correct.tolist()
    logits = [_logits(scorer, row) for row in rows]
    nll = [-one.log_softmax(-1)[range(len(row.labels)), row.labels].mean() for one, row in zip(logits, rows, strict=True)]
    return torch.stack(nll), [one.argmax(-1).tolist() == row.labels for one, row in zip(logits, rows, strict=True)]


@torch.no_grad()
def _logits(scorer: Scorer, row: Fed) -> Tensor:
    """Logits where the reference reads the answer's tokens, ``[tokens, vocabulary]`` on the CPU."""
    columns = torch.arange(row.first - 1, row.first - 1 + len(row.labels), device=scorer.anatomy.device)
    inputs = right_pad([row.ids], scorer.encoder.pad, scorer.anatomy.device)
    with frozen(scorer.anatomy.model):
        return logits_at(scorer.anatomy, inputs, torch.zeros_like(columns), columns).cpu()


def _tied(scorer: Scorer, row: Fed) -> bool:
    """Whether a wanted token that decides is as likely as the best other one, up to float32."""
    return abs(float(margins(_logits(scorer, row), row.labels).min())) < TIE


def _recorded_summary(tally: Tally, found: dict[str, Any], state: str) -> None:
    """Summaries recomputed from the recorded scores of each record."""
    mine: dict[str, float] = {}
    for kind in _KINDS:
        sign = -1.0 if kind == "neighborhood" else 1.0
        gaps, likelier = [], []
        for record in found["counterfact"]:
            pairs = [(one["target_new"], one["target_true"]) for one in record[f"{kind}_prompts_probs"]]
            likelier.append([float(new > true if sign < 0 else true > new) for new, true in pairs])
            both = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
            gaps.append((sign * ((-both[:, 0]).exp() - (-both[:, 1]).exp())).tolist())
        correct = [[float(one) for one in record[f"{kind}_prompts_correct"]] for record in found["counterfact"]]
        for name, values in (("success", likelier), ("diff", gaps), ("acc", correct)):
            mine[f"{kind}_{name}"] = 100 * float(record_means(values).mean())
    mine["score_hmean"] = harmonic_mean([mine[f"{kind}_success"] for kind in _KINDS])
    for name, recorded in found["counterfact_summary"].items():
        _summary(tally, f"summary [recorded scores] {state}", name, mine[name], recorded, _CLOSED)


def _own_summary(tally: Tally, scorer: Scorer, records: Sequence[dict[str, Any]], summary: dict[str, Any], state: str) -> None:
    """Summaries as a run of this library would report them, through its requests, scorer and metrics."""
    requests = []
    for record in records:
        wanted, asked = record["requested_rewrite"], _asked(record)
        true = wanted["target_true"]["str"]
        requests.append(
            EditRequest(
                wanted["prompt"],
                wanted["subject"],
                wanted["target_new"]["str"],
                true,
                paraphrases=tuple(one.prompt for one in asked["paraphrase"]),
                neighbourhood=tuple((one.prompt, true) for one in asked["neighborhood"]),
            )
        )
    scores = EditScores("final")
    scores.update(scorer.requests(requests))
    found = {name.removeprefix("edit/final/"): 100 * float(value) for name, value in scores.compute().items()}
    for name, recorded in summary.items():
        kind, _, scoring = name.partition("_")
        ours = "score/success" if kind == "score" else f"{_KINDS[kind]}/{_SCORINGS[scoring]}"
        quantity, allowed = (f"mean differences {state}", _MODEL) if scoring == "diff" else (f"summary {state}", _CLOSED)
        _summary(tally, quantity, name, found[f"{ours}/teacher_forced"], recorded, allowed)


def _summary(tally: Tally, quantity: str, name: str, ours: float, recorded: float, allowed: Tolerance) -> None:
    # The recorded harmonic mean holds a zero away from zero.
    tally.scalar(quantity, ours, 0.0 if name == "score_hmean" and recorded < 1e-9 else recorded, allowed, name)
