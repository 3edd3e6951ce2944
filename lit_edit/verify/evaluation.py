"""Replays recorded evaluations: CounterFact and ZsRE scores before and after editing, and measures of text.

Teacher-forced scores go through the model on the original weights and on those that the recorded keys and residuals lead to.
Booleans have to be equal, except where what decided them is a tie in float32: two NLLs, or the logit of the wanted token and
the best other one, that are less than :data:`~lit_edit.verify.counterfact.TIE` apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from lit_edit.errors import EditError
from lit_edit.metrics.zsre import TokenRow, legacy_margins, legacy_neighbourhood_rows, legacy_rows, token_accuracy
from lit_edit.scoring import Scorer
from lit_edit.verify import counterfact, measures, memit, sequence
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.table import CLOSED_FORM, Row, Tally, Tolerance

_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_EXACT = Tolerance(0.0, "exact")


def run(recording: Recording) -> list[Row]:
    """Rows of every recorded state of the model, and of the measures of text.

    Raises:
        EditError: if ``eval.json`` is damaged or does not fit ``records.json``.
    """
    try:
        return _rows(recording)
    except (AttributeError, ValueError) as error:
        path = recording.folder / "eval.json"
        raise EditError(f"{path} is damaged or of another format ({type(error).__name__}: {error})") from error


def _rows(recording: Recording) -> list[Row]:
    tally = Tally(recording, "evaluation")
    said = recording.json("eval.json")
    if said is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    scorer = Scorer(recording.anatomy, recording.encoder)
    for state, found in said.items():
        if state != "pre" and not state.startswith("post_"):
            continue
        with _edited(recording, state) as obstacle:
            if obstacle:
                tally.note(state, obstacle)
                continue
            if "counterfact" in found:
                counterfact.add(tally, scorer, recording.records["records"], found, f"[{state}]")
            if "zsre" in found:
                _zsre(tally, scorer, recording.records["zsre"], found, f"[{state}]")
    items = said.get("zsre_neighborhood_items_built_by_reference_dataset")
    if items is not None:
        for at, (row, recorded) in enumerate(zip(recording.records["zsre"], items, strict=False)):
            rows = legacy_neighbourhood_rows(recording.encoder, row["loc"] + "?", row["loc_ans"])
            ours = [{"prompt": one.prompt, "target": one.target} for one in rows]
            tally.add("ZsRE neighbourhood prompts", float(ours != recorded), _EXACT, f"record {at}")
    measures.add(tally, said.get("text_metrics"))
    return tally.rows()


@contextmanager
def _edited(recording: Recording, state: str) -> Iterator[str]:
    """Show the weights of a state inside the block; gives why that cannot be, or nothing."""
    recording.restore()
    try:
        yield "" if state == "pre" else _write(recording, state)
    finally:
        recording.restore()


def _write(recording: Recording, state: str) -> str:
    named = re.fullmatch(r"post_MEMIT(\d+)", state)
    method = memit.method(recording)
    if named is None or method is None:
        return "weights of this state are not covered" if named is None else "needs MEMIT.safetensors, not recorded here"
    editor, _ = method.editor()
    writes = int(named[1]) * len(method.layers)
    made = list(islice(sequence.solved(method, editor), writes))
    if len(made) < writes:
        return f"keys and residuals of fewer than {named[1]} batches are recorded"
    for _, layer, _, weight in made:
        recording.anatomy.weight(layer).copy_(weight)
    return ""


def _zsre(tally: Tally, scorer: Scorer, records: Sequence[dict[str, Any]], found: dict[str, Any], state: str) -> None:
    encoder = scorer.encoder
    if len(found["zsre"]) > len(records):
        raise EditError(f"eval.json scores {len(found['zsre'])} ZsRE records, records.json holds {len(records)}")
    groups: list[tuple[str, int, list[TokenRow]]] = []
    for at, record in enumerate(records[: len(found["zsre"])]):
        answer = record["answers"][0]
        groups.append(("rewrite", at, legacy_rows(encoder, [record["src"]], answer)))
        groups.append(("paraphrase", at, legacy_rows(encoder, [record["rephrase"]], answer)))
        groups.append(("neighborhood", at, legacy_neighbourhood_rows(encoder, record["loc"] + "?", record["loc_ans"])))
    margin = iter(legacy_margins(scorer, [row for *_, rows in groups for row in rows]).tolist())
    right: dict[str, list[list[bool]]] = {kind: [] for kind in ("rewrite", "paraphrase", "neighborhood")}
    for kind, at, rows in groups:
        recorded = found["zsre"][at][f"{kind}_prompts_correct"]
        if len(recorded) != len(rows):
            raise EditError(f"eval.json holds {len(recorded)} tokens of ZsRE record {at} ({kind}), its answer has {len(rows)}")
        ours = []
        for token, theirs in enumerate(recorded):
            gap = next(margin)
            tied = abs(gap) < counterfact.TIE
            tally.add(
                f"ZsRE tokens, {kind} {state}", float((gap >= 0) != theirs and not tied), _EXACT, f"record {at} token {token}"
            )
            ours.append(theirs if tied else gap >= 0)
        right[kind].append(ours)
    for name, value in found["zsre_summary"].items():
        mine = 100 * token_accuracy(right[name.removesuffix("_acc")])
        tally.scalar(f"ZsRE summary {state}", mine, value, _CLOSED, name)


CHECK = Check("evaluation", ("eval.json", "tfidf_idf.json"), run)
