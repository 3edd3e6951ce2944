"""The record of one batch: plain JSON on one line, chained to the one before by SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lit_edit.batch.outcome import BatchOutcome
from lit_edit.errors import EditError
from lit_edit.options.documents import load_json

FORMAT = 3
"""Number of the form of records; those of the first had no chain and no number."""
START = "0" * 64
"""What the first record names as the hash of the one before."""
DEEPEST = 8
"""Levels of nesting in a record, with some to spare."""
LONGEST = 2**26
"""Bytes of a record: 64 MiB are a batch of some hundred thousand facts."""


@dataclass(frozen=True)
class Applied:
    """What the optimiser's step did, for the record of its batch."""

    original: str
    """Hash of the unedited weights."""
    before: Mapping[int, Tensor]  # [O, I] float32
    """The masters before the step, by layer."""
    after: Mapping[int, Tensor]  # [O, I] float32
    """And behind it."""
    tried: frozenset[int] = frozenset()
    """Places in the batch of the requests that could be tokenised and were not refused one by one."""
    reached: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Loss and probability of the target at the end of its optimisation, by place; of editors that optimise targets."""


def content(outcome: BatchOutcome, number: int, position: int, edits: int, applied: Applied | None) -> dict[str, Any]:
    """Everything of a record but hashes and factors; :mod:`docs <lit_edit.journal>` has the list of its keys."""
    written = {id(request) for request in outcome.edited}

    def fate(place: int) -> str:
        if id(outcome.batch.requests[place]) in written:
            return "written"
        if outcome.rejected is None or (applied is not None and place not in applied.tried):
            return "set aside"
        return "rejected"

    requests = []
    for place, request in enumerate(outcome.batch.requests):
        loss, probability = (applied.reached if applied else {}).get(place, (None, None))
        requests.append(
            {
                "id": request.case_id,
                "source": request.source,
                "prompt": request.prompt,
                "subject": request.subject,
                "target": request.target_new,
                "fate": fate(place),
                "loss": loss,
                "probability": probability,
            }
        )
    return {
        "format": FORMAT,
        "batch": number,
        "start": outcome.batch.start,
        "position": position,
        "edits": edits,
        "cases": [request.case_id for request in outcome.edited],
        "requests": requests,
        "set_aside": [{"source": s.source, "field": s.field, "reason": s.reason} for s in outcome.set_aside],
        "rejected": outcome.rejected,
        "target_loss": outcome.loss,
        "target_probability": outcome.probability,
        "scalars": outcome.scalars,
    }


def sealed(record: dict[str, Any], before: str) -> tuple[str, str]:
    """The line of a record, and its hash.

    Args:
        record: without hashes.
        before: hash of the record before, :data:`START` for the first.
    """
    whole = {**finite(record), "before": before}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return json.dumps({**whole, "sha256": digest}, sort_keys=True) + "\n", digest


def check(records: Sequence[dict[str, Any]], lines: Sequence[str], name: str) -> str:
    """Make sure that every record is as it was written, and follows the one before.

    Args:
        records: as parsed.
        lines: what they were parsed from, without line ends.
        name: of the file, for messages.

    Returns:
        Hash of the last record.

    Raises:
        EditError: naming the first that is not.
    """
    head = START
    for number, (record, line) in enumerate(zip(records, lines, strict=True)):
        if record.get("format") != FORMAT:
            raise EditError(
                f"{name} was written by another version (record {number} has format {record.get('format', 1)}, this one reads "
                f"{FORMAT}); it has no chain or no factors that this one could use"
            )
        body = {key: value for key, value in record.items() if key not in ("sha256", "before")}
        written, digest = sealed(body, head)
        if record.get("before") != head:
            raise EditError(
                f"{name} is damaged: record {number} does not follow record {number - 1}, whose hash it should name"
            )
        if written != line + "\n":
            raise EditError(f"{name} is damaged: record {number} is not what was written, its hash does not fit")
        if record.get("batch") != number:
            raise EditError(f"{name} is damaged: record {number} says it is of batch {record.get('batch')}")
        head = digest
    return head


def parse(text: str, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Records and their lines; an unfinished last line (a crash while writing) is left out.

    Raises:
        EditError: naming the line that is no record.
    """
    lines, found = text.split("\n")[:-1], []
    for number, line in enumerate(lines, start=1):
        try:
            if len(line) > LONGEST:
                raise ValueError(f"it is longer than {LONGEST} bytes")
            record = load_json(line)
            if not isinstance(record, dict) or _depth(record) > DEEPEST:
                raise ValueError("it is no record of a batch")
        except ValueError as error:
            raise EditError(f"the journal {name} is damaged in line {number} ({error}); mend or remove it") from error
        found.append(record)
    return found, lines


def _depth(value: Any) -> int:
    """Levels of nesting, as far as they matter here."""
    level, parts = 0, [value]
    while parts and level <= DEEPEST:
        level += 1
        parts = [
            inner
            for part in parts
            if isinstance(part, (dict, list))
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return level


def finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite is written as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return value
