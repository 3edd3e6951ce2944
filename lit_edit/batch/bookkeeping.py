"""What became of the requests of one batch: for callbacks and the summary, for the journal, for the logs.

Legend: N = requests whose targets were optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lit_edit.batch.outcome import BatchOutcome
from lit_edit.errors import MalformedRecord
from lit_edit.prompts import EditRows
from lit_edit.request import EditRequest, SetAside
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench


def tokenised(outcome: BatchOutcome, rows_of: Callable[[EditRequest], EditRows]) -> list[EditRows]:
    """Rows of every request of a batch that can be tokenised, in stream order; the others are set aside.

    Args:
        outcome: of the batch, which takes note of what is set aside.
        rows_of: makes the rows of a request, or raises :class:`~lit_edit.errors.MalformedRecord`.
    """
    rows = []
    for index, request in enumerate(outcome.batch.requests):
        try:
            rows.append(rows_of(request))
        except MalformedRecord as error:
            source = request.source or f"stream position {outcome.batch.start + index}"
            outcome.set_aside.append(SetAside(source, error.field, error.reason))
    return rows


def account(outcome: BatchOutcome, rows: Sequence[EditRows], bench: Workbench) -> None:
    """Put into the outcome what became of the requests.

    Args:
        outcome: of a batch that was solved for, or rejected.
        rows: see :func:`tokenised`.
        bench: where the batch was worked on.
    """
    refused = {id(row.request) for row, _ in bench.refused}
    for row, reason in bench.refused:
        outcome.set_aside.append(SetAside(row.request.source or row.request.name, "*", f"could not be written: {reason}"))
    if outcome.rejected is None:
        outcome.edited = tuple(row.request for row in rows if id(row.request) not in refused)
        outcome.scalars.update(bench.scalars)
        outcome.deltas = bench.thin()
        outcome.keys = {layer: torch.cat(parts) for layer, parts in bench.keys.items()}
    outcome.loss, outcome.probability = mean(bench.losses, "loss_N"), mean(bench.losses, "probability_N")


def reached(
    outcome: BatchOutcome, rows: Sequence[EditRows], bench: Workbench
) -> tuple[frozenset[int], Mapping[int, tuple[float, float]]]:
    """What the journal keeps of every request, see :class:`lit_edit.journal.Applied`.

    Args:
        outcome: of the batch.
        rows: see :func:`tokenised`.
        bench: where the batch was worked on.

    Returns:
        Places in the batch of the requests that were not refused one by one; loss and probability of their targets by place,
        empty where those are not of one optimisation each.
    """
    refused = {id(row.request) for row, _ in bench.refused}
    place = {id(request): index for index, request in enumerate(outcome.batch.requests)}
    tried = [place[id(row.request)] for row in rows if id(row.request) not in refused]
    each = [(found.loss_N.tolist(), found.probability_N.tolist()) for found in bench.losses]
    numbers = [pair for losses, probabilities in each for pair in zip(losses, probabilities, strict=True)]
    return frozenset(tried), dict(zip(tried, numbers, strict=True)) if len(numbers) == len(tried) else {}


def logged(outcome: BatchOutcome, edits: int) -> dict[str, float]:
    """The numbers of a batch under the names that they are logged with.

    Args:
        outcome: of the batch.
        edits: written so far, with those of this batch.
    """
    return {
        **outcome.scalars,
        "edit/count": float(edits),
        "target/loss": outcome.loss,
        "target/probability": outcome.probability,
    }


def mean(found: Sequence[Targets], name: str) -> float:
    """Mean over all requests whose targets were optimised, NaN where none were."""
    values = [getattr(targets, name) for targets in found]
    return float(torch.cat(values).mean()) if values else float("nan")
