"""The record of every batch: one JSON line each, on disk before the next batch begins."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.outcome import BatchOutcome
from lit_edit.store import write_atomically


class Journal:
    """Append-only ``journal.jsonl`` of a run.

    A run that resumes from a checkpoint cuts the journal back to the records that the checkpoint knows, so that no batch
    stands in it twice.

    Args:
        path: the file; an existing one is continued.

    Raises:
        EditError: if the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = len(self.records())
        if self._text() and not self._text().endswith("\n"):
            self.truncate(self.count)  # or the next record would stand on a line with the unfinished one

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"the journal {self.path} cannot be read: {getattr(error, 'strerror', error)}") from error

    def records(self) -> list[dict[str, Any]]:
        """All records so far; an unfinished last line (a crash while writing) is left out."""
        found = []
        for number, line in enumerate(self._text().split("\n")[:-1], start=1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise EditError(f"the journal {self.path} is damaged in line {number} ({error}); mend or remove it") from error
        return found

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` records.

        Raises:
            EditError: if the journal is shorter, so that it cannot belong to the checkpoint.
        """
        records = self.records()
        if len(records) < count:
            raise EditError(
                f"the journal {self.path} holds {len(records)} batches, but the checkpoint was written after {count}; "
                "resume in the run folder that the checkpoint belongs to"
            )
        write_atomically(self.path, "".join(_line(record) for record in records[:count]).encode())
        self.count = count

    def append(self, outcome: BatchOutcome, position: int, edits: int) -> None:
        """Write the record of one batch and flush it to disk.

        Raises:
            EditError: if the file cannot be written.
        """
        record = {
            "batch": self.count,
            "start": outcome.batch.start,
            "position": position,
            "edits": edits,
            "cases": [request.case_id for request in outcome.edited],
            "set_aside": [{"source": s.source, "field": s.field, "reason": s.reason} for s in outcome.set_aside],
            "rejected": outcome.rejected,
            "target_loss": outcome.loss,
            "target_probability": outcome.probability,
            "scalars": outcome.scalars,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EditError(f"the journal {self.path} cannot be written: {error.strerror}") from error
        self.count += 1


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(record), sort_keys=True) + "\n"


def finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite is written as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return value
