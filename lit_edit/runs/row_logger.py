"""Logged numbers as CSV, written so that a run killed at any instant loses none of the rows it had written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_edit.errors import EditError
from lit_edit.store import append_durably, write_atomically


class RowLogger(CSVLogger):
    """Lightning's CSV logger with files that are never half rewritten.

    Where a column is new, Lightning empties the file and writes it again: killed there, every earlier row is gone. Here such
    a file is replaced as a whole, and rows are appended otherwise; a last line without its end was cut off and does not count.
    """

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are still in memory.

        Raises:
            EditError: if the file cannot be written.
        """
        writer = self.experiment
        rows: list[dict[str, Any]] = writer.metrics
        if not rows:
            return
        path = Path(writer.metrics_file_path)
        columns = sorted(set(writer.metrics_keys).union(*rows))
        if path.exists() and columns == writer.metrics_keys:
            append_durably(path, _text(columns, rows).encode())
        else:
            head = io.StringIO(newline="")
            csv.DictWriter(head, columns).writeheader()
            write_atomically(path, (head.getvalue() + _text(columns, [*_rows(path), *rows])).encode())
        writer.metrics_keys, writer.metrics = columns, []


def _text(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    lines = io.StringIO(newline="")
    csv.DictWriter(lines, columns).writerows(rows)
    return lines.getvalue()


def _rows(path: Path) -> list[dict[str, Any]]:
    """What a file holds, nothing where there is none."""
    try:
        return list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""))) if path.exists() else []
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror}") from error
